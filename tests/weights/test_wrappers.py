"""Names that training programs leave, and folders with more than one set of weights."""

import json
import shutil

import jax
import numpy as np
import pytest
from paths import GOLDENS
from safetensors.numpy import load_file, save_file

from finetune.errors import ModelError, TransferError
from finetune.models.backbone import load_backbone

CHECKPOINTS = ["vit", "timm-convnext", "open-clip", "mobilenet-v2"]


def saved(name, folder, change):
    """A checkpoint's folder with its tensors changed."""
    shutil.copytree(GOLDENS / name, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    save_file(change(tensors), file, metadata={"format": "pt"})
    return folder


PREFIXES = ["module.", "_orig_mod.", "model.", "module._orig_mod.", "ema_model.module."]
PAIRS = [(name, prefix) for name in CHECKPOINTS for prefix in PREFIXES]
QUICK = {("vit", "module."), ("open-clip", "_orig_mod."), ("timm-convnext", "ema_model.module.")}


@pytest.mark.parametrize(
    ("name", "prefix"), [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow) for pair in PAIRS]
)
def test_a_wrappers_prefix_is_left_out_and_said(tmp_path, name, prefix):
    wrapped = saved(name, tmp_path / "m", lambda tensors: {prefix + key: value for key, value in tensors.items()})
    backbone, plain = load_backbone(wrapped), load_backbone(GOLDENS / name)
    assert jax.tree.all(jax.tree.map(np.array_equal, backbone.variables, plain.variables))
    assert f"the prefix {prefix!r} of all tensors' names is left out" in backbone.report.notes[0]
    assert plain.report.notes == ()


def test_the_counter_of_an_averaged_model_is_no_weight(tmp_path):
    def average(tensors):
        return {"n_averaged": np.array([7]), **{f"module.{key}": value for key, value in tensors.items()}}

    assert load_backbone(saved("vit", tmp_path / "m", average)).report.notes


def test_a_prefix_that_nobody_knows_is_the_first_thing_the_message_says(tmp_path):
    wrapped = saved("vit", tmp_path / "m", lambda tensors: {f"student.{key}": value for key, value in tensors.items()})
    with pytest.raises(ModelError, match=r"none of its \d+ tensors belong|prefix") as raised:
        load_backbone(wrapped)
    assert len(str(raised.value).splitlines()) < 30


def test_a_temperature_of_one_value_is_a_scalar(tmp_path):
    loaded = load_backbone(
        saved("open-clip", tmp_path / "m", lambda t: {**t, "logit_scale": t["logit_scale"].reshape(1)})
    )
    assert loaded.text.variables["params"]["logit_scale"].shape == ()


@pytest.mark.parametrize("shards_are_there", [True, False])
def test_the_single_file_is_read_before_an_index_and_the_other_is_named(tmp_path, shards_are_there):
    folder = shutil.copytree(GOLDENS / "vit", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    old = {key: np.zeros_like(value) for key, value in tensors.items()}
    if shards_are_there:
        save_file(old, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_backbone(folder)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(loaded.variables))
    assert "model.safetensors is read, and model.safetensors.index.json beside it is not" in loaded.report.notes[0]


def test_weights_of_another_size_are_not_hidden_by_a_prefix(tmp_path):
    def shrink(tensors):
        return {f"module.{key}": value[:1] if value.ndim == 2 else value for key, value in tensors.items()}

    with pytest.raises(TransferError, match="all names fit, and sizes do not"):
        load_backbone(saved("vit", tmp_path / "m", shrink))
