from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from paths import GOLDENS
from pytorch_gradients import gradient_errors
from safetensors.numpy import load_file, save_file

from finetune.errors import ModelError, TransferError
from finetune.models.backbone import load_backbone
from finetune.models.classifier import build_classifier
from finetune.optim.selectors import select
from finetune.trees import paths_of

GOLDEN = GOLDENS / "dinov3-step"


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(GOLDEN)


@pytest.fixture
def changed(tmp_path):
    """A golden with other values in its configuration."""

    def change(golden=GOLDEN.name, **values):
        shutil.copytree(GOLDENS / golden, tmp_path, dirs_exist_ok=True)
        file = tmp_path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return tmp_path

    return change


def apply(backbone, pixels, **options):
    return jax.jit(lambda v, x: backbone.module.apply(v, x, **options))(backbone.variables, pixels)


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_every_gradient_is_that_of_pytorch():
    assert max(gradient_errors(GOLDEN).values()) < 1e-4


def test_images_need_not_be_square_and_incomplete_patches_are_ignored(backbone):
    pixels = noise(2, 32, 56, 3)
    output = apply(backbone, pixels)
    assert output.last_hidden_state.shape == (2, 1 + 2 + 4 * 7, backbone.num_features)
    assert np.isfinite(output.pooler_output).all()
    wider = np.pad(pixels, ((0, 0), (0, 5), (0, 7), (0, 0)))
    np.testing.assert_array_equal(apply(backbone, wider).pooler_output, output.pooler_output)


def test_another_image_size_changes_no_parameter(backbone):
    other = load_backbone(GOLDEN, image_size=64)
    assert other.report.resized == ()
    jax.tree.map(np.testing.assert_array_equal, other.variables, backbone.variables)


def test_training_sees_the_positions_of_evaluation(backbone):
    """transformers would rescale them at random."""
    pixels = noise(2, 32, 32, 3)
    trained = apply(backbone, pixels, train=True).pooler_output
    np.testing.assert_array_equal(trained, apply(backbone, pixels).pooler_output)


def test_pooled_features_alone_are_the_same(backbone):
    pixels = noise(2, 32, 32, 3)
    alone = apply(backbone, pixels, pooled_only=True)
    assert alone.last_hidden_state is None
    np.testing.assert_allclose(alone.pooler_output, apply(backbone, pixels).pooler_output, atol=2e-5)


def test_selectors_know_its_parts(backbone):
    _, variables = build_classifier(backbone, 3)
    paths = set(paths_of(variables["params"]))
    inside = "backbone/encoder/layers/0"
    order = backbone.module.depth_order
    assert select("embeddings", paths) == {
        "backbone/embeddings/class_embedding",
        "backbone/embeddings/register_embedding",
    }
    assert {f"{inside}/layer_norm1/scale", f"{inside}/layer_norm1/bias"} <= select("norms", paths)
    assert f"{inside}/self_attn/q_proj/bias" in select("biases", paths)
    assert select("blocks[0]", paths, order) == {path for path in paths if path.startswith(f"{inside}/")}


def test_only_the_keys_have_no_bias(backbone):
    attention = backbone.variables["params"]["encoder"]["layers"]["0"]["self_attn"]
    assert {name for name, leaves in attention.items() if "bias" not in leaves} == {"k_proj"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"value_bias": False}, "biases"),
        ({"use_gated_mlp": True}, "only silu"),
        ({"num_attention_heads": 8}, "multiple of 4"),
    ],
)
def test_what_is_not_supported_is_said(changed, values, message):
    with pytest.raises(ModelError, match=message):
        load_backbone(changed(**values))


@pytest.mark.parametrize("golden", ["dinov3-step", "dinov2-registers"])
def test_a_model_without_registers_has_an_empty_table_of_them_in_its_file(changed, golden):
    folder = changed(golden, num_register_tokens=0)
    with pytest.raises(TransferError, match=r"unexpected  embeddings\.register_tokens"):
        load_backbone(folder)
    tensors = load_file(folder / "model.safetensors")
    registers = tensors["embeddings.register_tokens"]
    save_file(tensors | {"embeddings.register_tokens": registers[:, :0]}, folder / "model.safetensors")
    backbone = load_backbone(folder)
    assert "register_embedding" not in backbone.variables["params"]["embeddings"]
    assert "embeddings.register_tokens" in backbone.report.unused
