"""The devices of a run as a mesh."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh
from pydantic import ValidationError

from finetune.errors import MeshError, first_line
from finetune.recipe.mesh import AXES, MeshConfig


def make_mesh(config: MeshConfig | Mapping[str, Any] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes ``data``, ``fsdp`` and ``tensor``.

    Args:
        config: devices along each axis, such as ``{"data": -1, "fsdp": 2}``; by default all along ``data``.
        devices: those to arrange; by default all, those of other processes included.

    Raises:
        MeshError: the axes do not take all of the devices.
    """
    if not isinstance(config, MeshConfig):
        try:
            config = MeshConfig.model_validate(dict(config or {}))
        except ValidationError as error:
            raise MeshError(f"mesh: {first_line(error)}: {error.errors()[0]['msg']}") from None
    devices = jax.devices() if devices is None else devices
    sizes = _fill(config, len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _fill(config: MeshConfig, count: int) -> tuple[int, ...]:
    """The sizes of the axes, with what is left in the place of -1."""
    given = [size for size in config.sizes.values() if size != -1]
    product, open_ended = math.prod(given), len(given) < len(AXES)
    if product == count or (open_ended and count % product == 0):
        return tuple(count // product if size == -1 else size for size in config.sizes.values())
    written = " x ".join(f"{axis} {size}" for axis, size in config.sizes.items() if size != -1)
    reason = f"is {product:,}" if not open_ended else f"does not divide {count:,}"
    raise MeshError(
        f"mesh: {written} {reason}, and there {'is' if count == 1 else 'are'} {count:,} device{'s' * (count > 1)}; "
        "choose sizes whose product is that, one of them -1 for what is left"
    )


def mesh_for(batches: Mapping[str, int]) -> tuple[Mesh, str | None]:
    """The mesh where none was asked for: all devices along ``data``, or as many as divide every batch.

    Args:
        batches: batch sizes by the name of their option; of each part, where a batch is computed in several.

    Returns:
        The mesh, and a line about devices that are left out; None where none are.

    Raises:
        MeshError: several processes, whose devices cannot be left out, and a batch that does not divide among them.
    """
    devices = jax.devices()
    count = len(devices)
    while any(size % count for size in batches.values()):
        count -= 1
    if count == len(devices):
        return make_mesh(), None
    name, size = next((name, size) for name, size in batches.items() if size % len(devices))
    problem = f"{name}: {size} does not divide among {len(devices)} devices"
    if jax.process_count() > 1:
        raise MeshError(f"{problem} of {jax.process_count()} processes; choose a multiple of {len(devices)}")
    line = f"{count} of {len(devices)} devices are used: {problem}; a multiple of {len(devices)} uses all"
    return make_mesh(devices=devices[:count]), line


def shards_of_batch(mesh: Mesh) -> int:
    """The parts that a batch is divided into."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])


def describe_mesh(mesh: Mesh) -> str:
    """Such as ``data 4 x tensor 2 of 8 cpu devices``."""
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    kind = mesh.devices.flat[0].device_kind
    return f"{axes or 'one device'} ({mesh.size} x {kind})"
