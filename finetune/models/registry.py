"""The families that can be loaded."""

from __future__ import annotations

from finetune.models.families import clip, convnext, dinov2, mobilenet_v2, resnet, siglip, vit
from finetune.models.family import Family

FAMILIES: tuple[Family, ...] = (
    clip.FAMILY,
    siglip.FAMILY,
    vit.FAMILY,
    dinov2.FAMILY,
    resnet.FAMILY,
    convnext.FAMILY,
    mobilenet_v2.FAMILY,
)
