"""Models built from plain data: a recipe, or the description in a saved bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, get_type_hints

import flax.linen as nn
import jax
from pydantic import ConfigDict, TypeAdapter, ValidationError

from finetune.errors import ModelError, first_line, nearest
from finetune.images.spec import ImageSpec
from finetune.models.backbone import Backbone, load_backbone
from finetune.models.classifier import Classifier, build_classifier
from finetune.models.custom_module import FAMILY, CustomModule, load_module
from finetune.models.evidence import check_sizes
from finetune.models.pretrained import describe_pretrained, find_reader
from finetune.models.registry import FAMILIES
from finetune.recipe import HeadConfig, ImageConfig, ModuleConfig, PretrainedConfig
from finetune.weights.layout import open_checkpoint
from finetune.weights.locate import locate

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


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


def describe_backbone(
    config: PretrainedConfig | ModuleConfig, *, allow_local_code: bool = False
) -> tuple[nn.Module, ImageSpec]:
    """The module that a recipe describes, and its images; no weights are read. Errors as in :func:`open_backbone`."""
    if isinstance(config, PretrainedConfig):
        checkpoint = open_checkpoint(locate(config.source, config.revision))
        return describe_pretrained(checkpoint, *find_reader(checkpoint), image_size=config.image_size)
    module = CustomModule(config.module, config.kwargs).build(allow_local_code=allow_local_code)
    return module, _image_spec(config.image)


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


def build_module(
    family: str,
    config: dict[str, Any],
    *,
    allow_local_code: bool = False,
    saved: Mapping[str, tuple[int, ...]] | None = None,
) -> nn.Module:
    """The backbone's module, from what :func:`describe` returned.

    Args:
        saved: path -> shape of the arrays that it is for, which the sizes of the configuration are held against.

    Raises:
        ModelError: the family is unknown, the configuration is not one of it; or see :meth:`CustomModule.build`.
    """
    if family == FAMILY:
        return _read_config(CustomModule, config, FAMILY).build(allow_local_code=allow_local_code)
    families = {member.name: member for member in FAMILIES}
    if family not in families:
        raise ModelError(
            f"unknown model family {family!r}{nearest(family, families)}; supported: {', '.join(families)}, {FAMILY}"
        )
    if saved is not None:
        check_sizes(config, saved)
    return families[family].module(_read_config(families[family].config, config, family))


def _read_config(kind: type, config: dict[str, Any], family: str) -> Any:
    """A configuration from JSON values; every key is known, and every value of the type that it has."""
    known = {field.name: field for field in fields(kind)}
    for name in config:
        if name not in known:
            raise ModelError(f"{family}: unknown key {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
    types = get_type_hints(kind)
    values = {}
    for name, value in config.items():
        try:
            # As JSON, so that lists may stand for tuples, and nothing else for anything else.
            values[name] = TypeAdapter(types[name], config=_STRICT).validate_json(json.dumps(value))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, (name, *problem["loc"])))
            raise ModelError(f"{family}: {where}: {problem['msg']}; received {str(problem['input'])[:80]}") from None
    try:
        return kind(**values)
    except (ArithmeticError, TypeError, ValueError, LookupError) as error:  # such as no attention heads
        raise ModelError(f"{family}: not a configuration: {first_line(error)}") from None


def _image_spec(image: ImageConfig) -> ImageSpec:
    mean, std = (
        tuple(value) if isinstance(value, list) else (value,) * image.channels for value in (image.mean, image.std)
    )
    return ImageSpec(image.size, image.size, image.size, "bilinear", mean, std)
