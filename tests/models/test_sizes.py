"""A configuration's sizes are compared with the tensors beside it before a model of them is built."""

import json
import shutil

import numpy as np
import pytest
from paths import GOLDENS
from safetensors.numpy import load_file, save_file

from finetune.errors import ModelError
from finetune.models.backbone import load_backbone


@pytest.fixture
def changed(tmp_path):
    """A copy of a reference checkpoint with other values in its configuration."""

    def change(name, values):
        folder = tmp_path / name
        shutil.copytree(GOLDENS / name, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))
        return folder

    return change


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("vit", {"num_hidden_layers": 3000}, "num_hidden_layers: 3000 blocks, but there are only .* tensors"),
        ("vit", {"num_hidden_layers": 90}, r"describes 90 blocks, but the names of the tensors number only \d+ parts"),
        ("vit", {"num_hidden_layers": 10**9}, "num_hidden_layers: needs a whole number from 1 to 16,777,216"),
        ("vit", {"hidden_size": 10**9}, "hidden_size: needs a whole number .*; received 1000000000"),
        ("vit", {"hidden_size": -64}, "hidden_size: needs a whole number .*; received -64"),
        ("vit", {"hidden_size": True}, "hidden_size: needs a whole number .*; received True"),
        ("vit", {"image_size": 10**6}, "image_size: needs a whole number from 1 to 4,096; received 1000000"),
        ("vit", {"patch_size": 0}, "patch_size: needs a whole number .*; received 0"),
        ("vit", {"patch_size": 1}, "the weights do not fit the model: .*\n.*patch_embedding/kernel: .* needed"),
        ("vit", {"num_attention_heads": 7}, "hidden_size .* is not a multiple of num_attention_heads 7"),
        ("vit", {"layer_norm_eps": 0.0}, "layer_norm_eps: needs a number from"),
        ("vit", {"hidden_dropout_prob": 1.5}, "dropout: needs a number from 0 to"),
        ("swin-classifier", {"depths": [1] * 5000}, "depths: a list of 5,000 values"),
        ("resnet-classifier", {"depths": [3000, 1]}, "depths: .*3000, 1.* blocks, but there are only"),
        ("efficientnet-classifier", {"depth_coefficient": 1e9}, "depth_coefficient: 1000000000.0 blocks, but"),
        ("clip-classifier", {"projection_dim": 1.5}, "projection_dim: needs a whole number .*; received 1.5"),
    ],
)
def test_sizes_that_cannot_be_true_are_named(changed, name, values, message):
    with pytest.raises(ModelError, match=rf"config\.json: no model can be built from it: {message}|{message}"):
        load_backbone(changed(name, values))


def test_weights_that_are_not_finite_are_named(tmp_path):
    shutil.copytree(GOLDENS / "vit", tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith("layernorm.weight"))
    tensors[name][3] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"tensor '{name}': 1 of its [\d,]+ values are not finite"):
        load_backbone(tmp_path)
