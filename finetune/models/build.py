"""Models built from plain data: a recipe, or the description in a saved bundle."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax

from finetune.errors import ModelError
from finetune.images.spec import ImageSpec
from finetune.models.backbone import Backbone, load_backbone
from finetune.models.classifier import Classifier, build_classifier
from finetune.models.custom_module import FAMILY, CustomModule, load_module
from finetune.models.registry import FAMILIES
from finetune.recipe import HeadConfig, ImageConfig, ModuleConfig, PretrainedConfig


def open_backbone(
    config: PretrainedConfig | ModuleConfig, *, seed: int = 0, allow_local_code: bool = False
) -> Backbone:
    """The backbone that a recipe describes; errors as in :func:`load_backbone` and :func:`load_module`.

    Args:
        seed: of the initial weights of a module that is not pretrained.
        allow_local_code: permit modules from outside this toolkit.
    """
    if isinstance(config, PretrainedConfig):
        return load_backbone(**config.model_dump())
    return load_module(
        CustomModule(config.module, config.kwargs),
        _image_spec(config.image),
        seed=seed,
        weights=config.weights,
        allow_local_code=allow_local_code,
    )


def attach_head(
    backbone: Backbone, head: HeadConfig, num_classes: int, *, seed: int = 0
) -> tuple[Classifier, dict[str, Any]]:
    """The classifier that a recipe describes, before its first stage; a head that depends on the names of the classes
    is zero until then."""
    init: Any = {"zero_shot": "zeros", "pretrained": "zeros", "none": None}.get(head.init, head.init)
    return build_classifier(backbone, num_classes, head_init=init, dropout=head.dropout, rng=jax.random.key(seed))


def describe(backbone: Backbone) -> dict[str, Any]:
    """The arguments of :func:`build_module`, as JSON values."""
    return {"family": backbone.family, "config": asdict(backbone.config)}


def build_module(family: str, config: dict[str, Any], *, allow_local_code: bool = False) -> nn.Module:
    """The backbone's module, from what :func:`describe` returned.

    Raises:
        ModelError: the family is unknown; or see :meth:`CustomModule.build`.
    """
    if family == FAMILY:
        return CustomModule(**config).build(allow_local_code=allow_local_code)
    families = {member.name: member for member in FAMILIES}
    if family not in families:
        raise ModelError(f"unknown model family {family!r}; supported: {', '.join(families)}, {FAMILY}")
    values = {key: _lists_to_tuples(value) for key, value in config.items()}
    return families[family].module(families[family].config(**values))


def _image_spec(image: ImageConfig) -> ImageSpec:
    mean, std = (
        tuple(value) if isinstance(value, list) else (value,) * image.channels for value in (image.mean, image.std)
    )
    return ImageSpec(image.size, image.size, image.size, "bilinear", mean, std)


def _lists_to_tuples(value: Any) -> Any:
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list) else value
