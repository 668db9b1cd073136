from __future__ import annotations

from paths import GOLDENS
from pytorch_gradients import gradient_errors

from finetune.models.backbone import load_backbone
from finetune.models.families.pe_core import FAMILY

GOLDEN = GOLDENS / "timm-pe-core-step"


def test_every_gradient_is_that_of_pytorch():
    errors = gradient_errors(GOLDEN)
    del errors["pooler/attention/k_proj/bias"]  # zero but for rounding: the softmax does not depend on it
    assert max(errors.values()) < 1e-4


def test_the_pooling_has_heads_of_its_own():
    backbone = load_backbone(GOLDEN)
    assert (backbone.config.num_attention_heads, backbone.config.pool_heads) == (2, 8)
    assert backbone.variables["params"]["pooler"]["mlp"]["fc1"]["kernel"].shape == (16, 64)


def test_a_norm_of_the_pooled_vector_is_known_from_its_name():
    config = {"architecture": "vit_pe_core_tiny_patch16_384", "global_pool": "avg"}
    (reader,) = FAMILY.readers
    assert reader.read(config, ["cls_token", "fc_norm.weight"]).config.norm_after_pool
    assert not reader.read(config, ["cls_token", "norm.weight"]).config.norm_after_pool
