"""From a checkpoint's tensor names to a Linen tree: each family brings a table, this reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.errors import ModelError
from finetune.weights.tensors import LazyArray

Layout = Callable[[np.ndarray], np.ndarray]


def as_is(array: np.ndarray) -> np.ndarray:
    return array


def linear(array: np.ndarray) -> np.ndarray:
    """PyTorch's [out, in] to Flax's [in, out]."""
    return array.T


def pointwise(array: np.ndarray) -> np.ndarray:
    """A PyTorch 1x1 convolution [out, in, 1, 1], or a linear [out, in], to a Flax Dense's [in, out]."""
    return array.reshape(array.shape[:2]).T


def scalar(array: np.ndarray) -> np.ndarray:
    """[1] to []."""
    return array.reshape(())


def unbatched(array: np.ndarray) -> np.ndarray:
    """[1, ...] to [...]."""
    return array.reshape(array.shape[1:])


def flat(array: np.ndarray) -> np.ndarray:
    """[1, ..., n] to [n]."""
    return array.reshape(-1)


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
class Split:
    """A tensor that packs several leaves along its first axis, such as queries, keys and values in one kernel."""

    pattern: str
    paths: tuple[str, ...]
    layout: Layout = as_is
    collection: str = "params"


@dataclass(frozen=True)
class Drop:
    """Tensors that hold nothing learned, such as stored position indices."""

    pattern: str


Row = Rename | Split | Drop


def weight_and_bias(name: str, path: str, weight: str, layout: Layout = as_is) -> tuple[Rename, Rename]:
    """The rows of a module: tensors ``name.weight`` and ``name.bias``, leaves ``path.<weight>`` and ``path.bias``."""
    return Rename(rf"{name}\.weight", f"{path}.{weight}", layout), Rename(rf"{name}\.bias", f"{path}.bias", flat)


@dataclass(frozen=True)
class NamedTensors:
    """What a table made of a checkpoint.

    Attributes:
        leaves: (collection, key, key, ...) -> array, not read yet.
        names: the same keys -> the tensor's name in the file.
        dropped: names that the table leaves out on purpose.
        unknown: names that no row of the table matches.
    """

    leaves: dict[tuple[str, ...], LazyArray]
    names: dict[tuple[str, ...], str]
    dropped: tuple[str, ...]
    unknown: tuple[str, ...]


def apply_table(tensors: Mapping[str, np.ndarray | LazyArray], table: Sequence[Row]) -> NamedTensors:
    """Finds a place for every tensor; the first row of the table whose pattern matches decides.

    Raises:
        ModelError: two tensors claim one leaf, or a tensor's shape does not fit its row.
    """
    leaves: dict[tuple[str, ...], LazyArray] = {}
    names: dict[tuple[str, ...], str] = {}
    dropped, unknown = [], []
    for name in tensors:
        row, match = next(((r, m) for r in table if (m := re.fullmatch(r.pattern, name))), (None, None))
        if row is None or match is None:
            unknown.append(name)
            continue
        if isinstance(row, Drop):
            dropped.append(name)
            continue
        paths = row.paths if isinstance(row, Split) else (row.path,)
        for path, part in zip(paths, _parts(tensors[name], len(paths), row.layout, name), strict=True):
            key = (row.collection, *match.expand(path).split("."))
            if key in leaves:
                raise ModelError(f"tensors {names[key]!r} and {name!r} both claim {'/'.join(key)}")
            leaves[key], names[key] = part, name
    return NamedTensors(leaves, names, tuple(dropped), tuple(unknown))


def _parts(array: np.ndarray | LazyArray, count: int, layout: Layout, name: str) -> list[LazyArray]:
    """The leaves that a tensor becomes; their shapes are found without reading it."""

    def part(whole: np.ndarray, index: int) -> np.ndarray:
        return layout(np.split(whole, count)[index] if count > 1 else whole)

    try:
        shape = part(np.broadcast_to(np.int8(0), array.shape), 0).shape
    except (ValueError, IndexError):
        needed = f"{count} parts" if count > 1 else f"a {layout.__name__}"
        raise ModelError(f"tensor {name!r} has shape {array.shape}, not that of {needed}") from None

    def lazy(index: int) -> LazyArray:
        return LazyArray(shape, lambda: part(np.asarray(array), index))

    return [lazy(i) for i in range(count)]
