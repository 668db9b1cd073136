"""From a checkpoint's tensor names to a Linen tree: each family brings a table, this reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.errors import ModelError

Layout = Callable[[np.ndarray], np.ndarray]


def as_is(array: np.ndarray) -> np.ndarray:
    return array


def linear(array: np.ndarray) -> np.ndarray:
    """PyTorch's [out, in] to Flax's [in, out]."""
    return array.T


def convolution(array: np.ndarray) -> np.ndarray:
    """PyTorch's [out, in, height, width] to Flax's [height, width, in, out]."""
    return array.transpose(2, 3, 1, 0)


@dataclass(frozen=True)
class Rename:
    """Tensors whose whole name matches ``pattern`` become the leaf ``collection`` : ``path`` (dots separate keys)."""

    pattern: str
    path: str
    layout: Layout = as_is
    collection: str = "params"


@dataclass(frozen=True)
class Drop:
    """Tensors that hold nothing learned, such as stored position indices."""

    pattern: str


@dataclass(frozen=True)
class NamedTensors:
    """What a table made of a checkpoint.

    Attributes:
        leaves: (collection, key, key, ...) -> array.
        names: the same keys -> the tensor's name in the file.
        dropped: names that the table leaves out on purpose.
        unknown: names that no row of the table matches.
    """

    leaves: dict[tuple[str, ...], np.ndarray]
    names: dict[tuple[str, ...], str]
    dropped: tuple[str, ...]
    unknown: tuple[str, ...]


def apply_table(tensors: Mapping[str, np.ndarray], table: Sequence[Rename | Drop]) -> NamedTensors:
    """Reads every tensor; the first row of the table whose pattern matches decides.

    Raises:
        ModelError: two tensors claim one leaf, or a tensor's rank does not fit its layout.
    """
    leaves: dict[tuple[str, ...], np.ndarray] = {}
    names: dict[tuple[str, ...], str] = {}
    dropped, unknown = [], []
    for name in tensors:
        row, match = next(((r, m) for r in table if (m := re.fullmatch(r.pattern, name))), (None, None))
        if row is None or match is None:
            unknown.append(name)
        elif isinstance(row, Drop):
            dropped.append(name)
        else:
            key = (row.collection, *match.expand(row.path).split("."))
            if key in leaves:
                raise ModelError(f"tensors {names[key]!r} and {name!r} both claim {'/'.join(key)}")
            array = tensors[name]
            try:
                leaves[key] = row.layout(array)
            except ValueError:
                raise ModelError(
                    f"tensor {name!r} has shape {array.shape}, not that of a {row.layout.__name__}"
                ) from None
            names[key] = name
    return NamedTensors(leaves, names, tuple(dropped), tuple(unknown))
