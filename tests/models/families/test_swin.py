from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from paths import GOLDENS
from pytorch_gradients import gradient_errors
from safetensors.numpy import load_file, save_file

from finetune.errors import ModelError
from finetune.models.backbone import load_backbone
from finetune.models.families.swin import FAMILY
from finetune.optim.selectors import select


def rewritten(golden, folder, rename=lambda name: name, extra=(), **config):
    """A copy of a golden with other names of tensors, further tensors, and other entries of its configuration."""
    shutil.copytree(GOLDENS / golden, folder)
    tensors = {rename(name): value for name, value in load_file(folder / "model.safetensors").items()}
    save_file({**tensors, **{name: np.ones(3, np.float32) for name in extra}}, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    return folder


def assert_same_variables(ours, theirs):
    ours, theirs = flatten_dict(ours.variables), flatten_dict(theirs.variables)
    assert ours.keys() == theirs.keys()
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(ours[path], leaf)


@pytest.mark.parametrize("golden", ["swin-step", "swinv2-step"])
@pytest.mark.slow
def test_every_gradient_is_that_of_pytorch(golden):
    errors = gradient_errors(GOLDENS / golden)
    # the softmax does not depend on the bias of the keys, whose gradients are rounding errors
    assert max(error for path, error in errors.items() if not path.endswith("k_proj/bias")) < 1e-4
    learned = r"relative_position_embedding" if golden == "swin-step" else r"logit_scale|position_bias/fc\d/kernel"
    assert any(re.search(learned, path) for path in errors)


def test_the_scale_of_cosines_is_at_most_100():
    backbone = load_backbone(GOLDENS / "swinv2-step")
    pixels = np.load(GOLDENS / "swinv2-step" / "expected.npz")["pixel_values"]

    def pooled(logarithm):
        leaves = flatten_dict(backbone.variables)
        path = ("params", "stages_1", "blocks_0", "attention", "logit_scale")
        scaled = unflatten_dict({**leaves, path: jnp.full_like(leaves[path], logarithm)})
        return np.asarray(jax.jit(backbone.module.apply)(scaled, pixels).pooler_output)

    np.testing.assert_array_equal(pooled(5.0), pooled(np.log(100)))
    assert np.abs(pooled(np.log(100)) - pooled(np.log(50))).max() > 1e-3


def test_windows_of_transformers_v1_never_change_and_are_not_shifted_over_one_window():
    config = load_backbone(GOLDENS / "swin-step").config
    assert config.windows(0, (16, 16), (16, 16)) == ((4, 4), (2, 2))
    assert config.windows(1, (7, 7), (4, 4)) == ((4, 4), (0, 0))
    with pytest.raises(ModelError, match="too small for windows of 4x4: stage 2 has 3x3"):
        config.windows(1, (6, 6), (3, 3))


def test_windows_of_transformers_v2_are_those_of_the_image_size_in_the_configuration():
    config = load_backbone(GOLDENS / "swinv2-step").config
    assert config.windows(0, (13, 13), (13, 13)) == ((6, 6), (3, 3))
    assert config.windows(1, (13, 13), (7, 7)) == ((4, 4), (0, 0))
    assert replace(config, image_size=64).windows(1, (32, 32), (16, 16)) == ((4, 4), (0, 0))


def test_windows_of_timm_grow_with_the_image_and_are_no_larger_than_the_map():
    config = load_backbone(GOLDENS / "timm-swin-classifier").config
    assert config.windows(0, (12, 12), (12, 12)) == ((6, 6), (3, 3))
    assert config.windows(1, (12, 12), (6, 6)) == ((6, 6), (0, 0))
    assert config.windows(0, (12, 8), (12, 8)) == ((6, 4), (3, 2))
    assert config.windows(2, (8, 8), (2, 2)) == ((2, 2), (0, 0))


@pytest.mark.slow
def test_a_small_image_for_transformers_v1_is_refused_when_it_is_loaded_or_used():
    backbone = load_backbone(GOLDENS / "swin-step", image_size=10)
    with pytest.raises(ModelError, match="too small"):
        backbone.module.apply(backbone.variables, jnp.zeros((1, 10, 10, 3)))


def test_a_model_for_masked_images_gives_its_encoder(tmp_path):
    masked = rewritten(
        "swin-step", tmp_path / "masked", lambda name: f"swin.{name}", ("decoder.0.bias", "swin.embeddings.mask_token")
    )
    assert_same_variables(load_backbone(masked), load_backbone(GOLDENS / "swin-step"))


def test_timm_checkpoints_whose_stages_end_by_merging_patches_give_the_same_model(tmp_path):
    def end_of_stage(name):
        return re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)

    older = rewritten("timm-swin-classifier", tmp_path / "older", end_of_stage)
    assert_same_variables(load_backbone(older), load_backbone(GOLDENS / "timm-swin-classifier"))


@pytest.mark.parametrize(
    ("golden", "settings", "message"),
    [
        ("swin-step", {"use_absolute_embeddings": True}, "use_absolute_embeddings: only False"),
        ("swin-step", {"image_size": [32, 64]}, "only square images"),
        ("swin-step", {"num_heads": [2]}, "num_heads .* differ in length"),
        ("timm-swin-classifier", {"architecture": "swinv2_cr_tiny_224"}, "'swinv2_cr_tiny_224' is not supported"),
        ("timm-swin-classifier", {"model_args": {"head_dim": 4}}, "head_dim: only None"),
        ("timm-swin-classifier", {"model_args": {"window_size": [4, 8]}}, "only square windows"),
    ],
)
def test_unsupported_variants_are_refused(tmp_path, golden, settings, message):
    with pytest.raises(ModelError, match=message):
        load_backbone(rewritten(golden, tmp_path / "model", **settings))


@pytest.mark.parametrize(
    ("architecture", "width", "windows", "depths", "pretrained"),
    [
        ("swin_base_patch4_window12_384", 128, (12,) * 4, (2, 2, 18, 2), ()),
        ("swin_s3_base_224", 96, (7, 7, 14, 7), (2, 2, 30, 2), ()),
        ("swinv2_tiny_window8_256", 96, (8,) * 4, (2, 2, 6, 2), (0,) * 4),
        ("swinv2_large_window12to24_192to384", 192, (24,) * 4, (2, 2, 18, 2), (12, 12, 12, 6)),
    ],
)
def test_sizes_follow_from_the_names_of_timm(architecture, width, windows, depths, pretrained):
    size = int(re.search(r"\d+$", architecture)[0])
    config = {"architecture": architecture, "pretrained_cfg": {"input_size": [3, size, size]}}
    read = FAMILY.reader("timm", architecture).read(config, ()).config
    assert (read.embed_dim, read.window_sizes, read.depths) == (width, windows, depths)
    assert read.pretrained_windows == pretrained
    assert read.reference_grid == size // 4


def test_tables_of_relative_positions_are_embeddings_and_count_with_their_block():
    backbone = load_backbone(GOLDENS / "swin-step")
    paths = {f"backbone/{path}" for path in flatten_dict(backbone.variables["params"], sep="/")}
    tables = {path for path in paths if path.endswith("/relative_position_embedding")}
    assert len(tables) == 4
    assert select("embeddings", paths) == tables
    last = select("blocks[-1]", paths, backbone.module.depth_order)
    assert "backbone/stages_1/blocks_1/attention/relative_position_embedding" in last


@pytest.mark.slow
@pytest.mark.parametrize("golden", ["swin-step", "swinv2-step"])
def test_rematerialization_changes_no_gradient(golden):
    backbone = load_backbone(GOLDENS / golden)
    pixels = np.load(GOLDENS / golden / "expected.npz")["pixel_values"]

    def gradient(module):
        def loss_fn(params):
            output = module.apply({"params": params}, pixels, train=True, rngs={"dropout": jax.random.key(0)})
            return jnp.square(output.pooler_output).mean()

        return jax.jit(jax.grad(loss_fn))(backbone.variables["params"])

    plain, saving = gradient(backbone.module), gradient(backbone.module.clone(remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), plain, saving)
