from __future__ import annotations

import pytest
from paths import GOLDENS
from pytorch_gradients import gradient_errors

from finetune.models.backbone import load_backbone

STEPS = {"timm-eva02-step": {"mlp"}, "timm-eva02-clip-step": {"mlp", "self_attn"}}


@pytest.mark.parametrize("golden", STEPS)
def test_every_gradient_is_that_of_pytorch(golden):
    errors = gradient_errors(GOLDENS / golden)
    assert max(errors.values()) < 1e-4
    with_norm = {path.split("/")[-3] for path in errors if path.endswith("/norm/scale")}
    assert with_norm == STEPS[golden]


def test_the_mean_of_the_patches_is_normalized_after_pooling_and_the_class_token_before():
    assert load_backbone(GOLDENS / "timm-eva02-step").config.norm_after_pool
    assert not load_backbone(GOLDENS / "timm-eva02-clip-step").config.norm_after_pool


def test_the_embeddings_of_a_clip_are_no_classes(goldens):
    assert load_backbone(goldens / "timm-eva02-clip").head is None
    assert load_backbone(GOLDENS / "timm-eva02-classifier").head is not None
