"""From a checkpoint's folder to a Linen module and its variables, with every tensor accounted for."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from finetune.errors import ModelError, first_line, nearest, shown
from finetune.images.spec import ImageSpec
from finetune.models.family import Family, Reader, Reading
from finetune.models.layers.positions import resize_positions
from finetune.models.registry import FAMILIES
from finetune.models.sizes import ImpossibleSize, check_blocks, check_config, check_file, check_shapes
from finetune.models.surgery import TransferReport, transplant
from finetune.page.facts import ShownByFacts, dimensions
from finetune.trees import count_values
from finetune.weights.layout import Checkpoint
from finetune.weights.names import NamedTensors, apply_table
from finetune.weights.preprocessor import read_image_spec
from finetune.weights.tensors import LazyArray, require_finite

_POSITIONS = ("embeddings", "position_embedding", "embedding")  # the path of the position table in a vision tower


@dataclass(frozen=True, repr=False)
class Pretrained(ShownByFacts):
    """The model that a checkpoint holds.

    Attributes:
        module: Linen.
        variables: ``{"params": ..., "batch_stats": ... where it has them}``, float32.
        config: the module's configuration, a frozen dataclass.
        image_spec: how its images are prepared.
        report: where each tensor of the checkpoint went.
        folder: the checkpoint.
    """

    module: nn.Module
    variables: dict[str, Any]
    config: Any
    image_spec: ImageSpec
    report: TransferReport
    folder: Path

    def _facts(self) -> dict[str, Any]:
        return {
            "module": type(self.module).__name__,
            "parameters": count_values(self.variables["params"]),
            "images": dimensions(self.image_spec.shape),
            "folder": str(self.folder),
        }


def find_reader(checkpoint: Checkpoint) -> tuple[Family, Reader]:
    """The family that a checkpoint belongs to, and the family's reader of its layout.

    Raises:
        ModelError: no family reads such a checkpoint; lists what is supported.
    """
    for family in FAMILIES:
        reader = family.reader(checkpoint.layout, checkpoint.model_type)
        if reader is not None:
            return family, reader
        for pattern, description in family.refused.items():
            if re.fullmatch(pattern, checkpoint.model_type):
                raise ModelError(
                    f"{checkpoint.file}: model_type {checkpoint.model_type!r} is not supported: {description}"
                )
    field = "architecture" if checkpoint.layout == "timm" else "model_type"
    readers = [reader for family in FAMILIES for reader in family.readers if reader.layout == checkpoint.layout]
    supported = [name for reader in readers for name in (reader.label or reader.model_types).split(", ")]
    hint = nearest(checkpoint.model_type, supported) if checkpoint.layout == "transformers" else ""
    raise ModelError(
        f"{checkpoint.file}: {field} {checkpoint.model_type!r} is not supported{hint}; "
        f"supported: {', '.join(supported)}"
    )


def read_pretrained(
    checkpoint: Checkpoint, family: Family, reader: Reader, *, image_size: int | None = None, dtype: Any = None
) -> tuple[Pretrained, Family]:
    """Builds the module that a checkpoint's configuration describes and fills it with the checkpoint's tensors.

    Args:
        family, reader: from :func:`find_reader`.
        image_size: edge in pixels; learned positions are interpolated to it. None keeps the checkpoint's.
        dtype: compute dtype; float32 by default.

    Returns:
        The model, and the family of its vision module.

    Raises:
        ModelError: the checkpoint is damaged, or asks for a variant that is not supported.
        TransferError: its tensors do not fit its configuration.
    """
    try:
        return _read_as_named(checkpoint, family, reader, image_size, dtype)
    except ModelError:
        tensors = checkpoint.tensors.without_wrapper()
        if tensors is None:
            raise
        return _read_as_named(checkpoint.with_tensors(tensors), family, reader, image_size, dtype)


def check_pretrained(checkpoint: Checkpoint, family: Family, reader: Reader, *, image_size: int | None = None) -> None:
    """What :func:`read_pretrained` finds out before it builds a module; arguments and errors are the same."""
    _prepare(checkpoint, family, reader, image_size)


def describe_pretrained(
    checkpoint: Checkpoint, family: Family, reader: Reader, *, image_size: int | None = None
) -> tuple[nn.Module, ImageSpec]:
    """The vision module that :func:`read_pretrained` would build, and how its images are prepared; no tensor is read.
    Arguments and errors are the same."""
    prepared = _prepare(checkpoint, family, reader, image_size)
    config, spec = prepared.reading.config, prepared.spec
    config = getattr(config, "vision_config", config)
    if getattr(config, "image_size", None) not in (None, spec.height):
        config = replace(config, image_size=spec.height)
    return prepared.tower.module(config), spec


@dataclass(frozen=True)
class _Prepared:
    """What is known of a checkpoint's model before it is built."""

    reading: Reading
    spec: ImageSpec
    tower: Family
    named: NamedTensors


def _read_as_named(
    checkpoint: Checkpoint, family: Family, reader: Reader, image_size: int | None, dtype: Any
) -> tuple[Pretrained, Family]:
    """With the tensors' names as they are."""
    prepared = _prepare(checkpoint, family, reader, image_size)
    reading, spec, tower, config = prepared.reading, prepared.spec, prepared.tower, prepared.reading.config
    vision_config = getattr(config, "vision_config", config)
    native_size = getattr(vision_config, "image_size", None)
    pixels = (1, native_size or spec.height, native_size or spec.width, 3)
    shapes = _variable_shapes(checkpoint, _module(reader, reading, tower, config), pixels, with_text=reading.has_text)
    variables, report = _transfer(checkpoint, reading, prepared.named, shapes)
    if native_size not in (None, spec.height):
        resized_config = replace(vision_config, image_size=spec.height)
        if getattr(vision_config, "learned_positions", True):
            table = getattr(vision_config, "position_path", _POSITIONS)
            path = ("params", *(() if config is vision_config else ("vision_model",)), *table)
            variables = _resize_position_table(variables, path, vision_config, resized_config.grid, reader)
            report = replace(report, resized=("/".join(path),))
        config = resized_config if config is vision_config else replace(config, vision_config=resized_config)
    module = _module(reader, reading, tower, config, dtype=dtype or jnp.float32)
    return Pretrained(module, variables, config, spec, report, checkpoint.folder), tower


def _prepare(checkpoint: Checkpoint, family: Family, reader: Reader, image_size: int | None) -> _Prepared:
    if image_size is not None and image_size < 1:
        raise ModelError(f"image_size: at least one pixel is needed; received {image_size}")
    reading = _read_config(checkpoint, reader)
    vision_config = getattr(reading.config, "vision_config", reading.config)
    native_size = getattr(vision_config, "image_size", None)
    spec = read_image_spec(checkpoint, processor=reader.processor, native=native_size, size=image_size)
    patch_size = getattr(vision_config, "patch_size", None)
    _check_image_size(checkpoint, reader, spec, native_size, image_size, patch_size)
    named = _named_tensors(checkpoint, reading)
    check_shapes(vision_config, named.leaves)
    return _Prepared(reading, spec, reading.tower or family, named)


def _module(reader: Reader, reading: Reading, tower: Family, config: Any, **options: Any) -> nn.Module:
    """The vision module, or both towers with it."""
    if reader.module is None or not reading.has_text:
        return tower.module(config, **options)
    return reader.module(config, vision_class=tower.module, **options)


def _read_config(checkpoint: Checkpoint, reader: Reader) -> Reading:
    try:
        check_file(checkpoint.config, checkpoint.tensors.keys())
        reading = reader.read(checkpoint.config, checkpoint.tensors.keys())
        check_config(reading.config)
        check_blocks(reading.config, checkpoint.tensors.keys())
        return reading
    except ImpossibleSize as error:
        raise ModelError(f"{checkpoint.file}: no model can be built from it: {error}") from None
    except ModelError as error:
        if str(checkpoint.folder) in str(error):  # raised for a file of tensors, which the message names
            raise
        raise ModelError(f"{checkpoint.file}: {error}") from None
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"{checkpoint.file}: no model can be built from it: {cause}") from None


def _check_image_size(
    checkpoint: Checkpoint,
    reader: Reader,
    spec: ImageSpec,
    native_size: int | None,
    image_size: int | None,
    patch_size: int | None,
) -> None:
    processed = f"{spec.height}x{spec.width}"
    if image_size not in (None, native_size) and patch_size is not None and image_size % patch_size:
        near = max(1, round(image_size / patch_size)) * patch_size
        raise ModelError(
            f"image_size: {image_size} is no multiple of the model's patches of {patch_size} pixels; such as {near}"
        )
    if min(spec.height, spec.width) < 1:
        raise ModelError(f"{checkpoint.folder}: its image processor makes images of {processed} pixels")
    if native_size is None:
        return
    if (spec.height, spec.width) != (native_size, native_size) and image_size is None and not reader.any_size:
        raise ModelError(
            f"{checkpoint.folder}: its image processor makes images of {processed}, but {checkpoint.file.name} says "
            f"{native_size}x{native_size}; choose one of them with image_size"
        )
    if spec.height != spec.width:
        raise ModelError(f"{checkpoint.folder}: only square images are supported; its files say {processed}")


def _variable_shapes(checkpoint: Checkpoint, module: nn.Module, pixels: tuple[int, ...], *, with_text: bool) -> Any:
    """The shapes of the variables that a configuration asks for."""
    images, texts = jax.ShapeDtypeStruct(pixels, jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    inputs = (texts, images) if with_text else (images,)
    try:
        return jax.eval_shape(lambda *inputs: module.init(jax.random.key(0), *inputs), *inputs)
    except ModelError as error:
        raise ModelError(f"{checkpoint.file}: {error}") from None
    except Exception as error:  # whatever a value of the wrong type or size leads to
        raise ModelError(f"{checkpoint.file}: no model can be built from it: {first_line(error)}") from None


def _named_tensors(checkpoint: Checkpoint, reading: Reading) -> NamedTensors:
    named = apply_table(checkpoint.tensors, reading.names)
    if not named.leaves:
        raise ModelError(
            f"{checkpoint.folder}: none of its {len(named.unknown)} tensors belong to the model that its "
            f"{checkpoint.file.name} names"
        )
    return named


def _transfer(
    checkpoint: Checkpoint, reading: Reading, named: NamedTensors, shapes: Any
) -> tuple[dict[str, Any], TransferReport]:
    tensors = checkpoint.tensors
    names, expected = dict(named.names), flatten_dict(shapes)
    # the table of no tokens is saved as one without rows
    empty = {key for key, leaf in named.leaves.items() if 0 in leaf.shape and key not in expected}
    leaves: dict[tuple[str, ...], Any] = {
        key: LazyArray(leaf.shape, partial(_read_finite, leaf, names[key], checkpoint.folder))
        for key, leaf in named.leaves.items()
        if key not in empty
    }
    for path, value in reading.defaults.items():
        key = ("params", *path.split("."))
        if key not in leaves:
            leaves[key], names[key] = np.float32(value), f"{checkpoint.file.name}: {path}"
    source = unflatten_dict(leaves)
    for name in named.unknown:  # no row matches it; transplant lists it among all that does not fit
        source.setdefault("unknown", {})[name] = tensors[name]
        names["unknown", name] = name
    variables, report = transplant(source, shapes, names=names)
    return variables, replace(
        report, unused=(*named.dropped, *sorted(names[key] for key in empty)), notes=tensors.notes
    )


def _read_finite(leaf: LazyArray, name: str, folder: Path) -> np.ndarray:
    try:
        return require_finite(np.asarray(leaf), name)
    except ModelError as error:
        raise ModelError(f"{shown(folder)}: {error}") from None


def _resize_position_table(
    variables: dict[str, Any], path: tuple[str, ...], config: Any, grid: int, reader: Reader
) -> dict[str, Any]:
    if grid < 1:
        raise ModelError(f"image_size: smaller than one patch of {config.patch_size} pixels")
    leaves = flatten_dict(variables)
    table = resize_positions(
        np.asarray(leaves[path]),
        config.position_prefix,
        grid,
        antialias=reader.antialias,
        bilinear=reader.bilinear,
    )
    return unflatten_dict({**leaves, path: jnp.asarray(table)})
