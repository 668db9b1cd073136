from __future__ import annotations

import numpy as np
from flax.traverse_util import flatten_dict
from paths import GOLDENS
from pytorch_gradients import gradient_errors

from finetune.models.backbone import load_backbone
from finetune.optim.selectors import select


def parameters(golden):
    return flatten_dict(load_backbone(GOLDENS / golden).variables["params"], sep="/")


def test_every_gradient_is_that_of_pytorch():
    errors = gradient_errors(GOLDENS / "beit-step")
    assert max(errors.values()) < 1e-4
    assert sum(path.endswith("attention/relative_position_embedding") for path in errors) == 2


def test_a_shared_bias_is_one_table_in_front_of_the_blocks():
    paths = {f"backbone/{path}" for path in parameters("masked-beit")}
    tables = {path for path in paths if path.endswith("relative_position_embedding")}
    assert tables == {"backbone/relative_position_embedding"}
    assert tables < select("embeddings", paths)
    order = load_backbone(GOLDENS / "masked-beit").module.depth_order
    assert not tables & select("blocks[:]", paths, order)


def test_keys_have_no_bias():
    for golden in ("beit-step", "timm-beit-classifier"):
        assert not [path for path in parameters(golden) if path.endswith("k_proj/bias")]
        assert [path for path in parameters(golden) if path.endswith("q_proj/bias")]


def test_a_model_for_masked_images_normalizes_the_tokens_and_then_pools_the_patches():
    backbone = load_backbone(GOLDENS / "masked-beit")
    pixels = np.load(GOLDENS / "masked-beit" / "expected.npz")["pixel_values"]
    output = backbone.module.apply(backbone.variables, pixels)
    np.testing.assert_allclose(output.pooler_output, output.last_hidden_state[:, 1:].mean(axis=1), rtol=1e-6)
    assert {name.split(".")[0] for name in backbone.report.unused} == {"lm_head", "beit"}
