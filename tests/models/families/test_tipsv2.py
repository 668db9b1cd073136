from __future__ import annotations

from paths import GOLDENS

from finetune.models.backbone import load_backbone


def test_of_a_model_with_both_towers_the_vision_tower_is_read():
    backbone = load_backbone(GOLDENS / "tipsv2")
    assert {name.split(".")[0] for name in backbone.report.unused} == {"text_encoder", "temperature", "vision_encoder"}
    assert [name for name in backbone.report.unused if name.startswith("vision")] == ["vision_encoder.mask_token"]
    assert backbone.text is None


def test_images_are_not_normalized():
    spec = load_backbone(GOLDENS / "tipsv2").image_spec
    assert (spec.mean, spec.std, spec.interpolation) == ((0.0,) * 3, (1.0,) * 3, "bilinear")
