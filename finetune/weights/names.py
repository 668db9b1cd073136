"""Tables that map a checkpoint's tensor names to a Linen tree; each family has its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune.errors import ModelError
from finetune.weights.tensors import LazyArray

Transform = Callable[[np.ndarray], np.ndarray]


def identity(array: np.ndarray) -> np.ndarray:
    return array


def linear(array: np.ndarray) -> np.ndarray:
    """A kernel of a linear layer: PyTorch's [out, in] to Flax's [in, out]."""
    return array.T


def pointwise(array: np.ndarray) -> np.ndarray:
    """A PyTorch kernel [out, in, 1, 1] of a 1x1 convolution, or [out, in], to that of a Flax Dense, [in, out]."""
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
    """A kernel of a convolution: PyTorch's [out, in, height, width] to Flax's [height, width, in, out]."""
    return array.transpose(2, 3, 1, 0)


@dataclass(frozen=True)
class Rename:
    """A tensor whose name matches all of ``pattern`` becomes one leaf.

    Attributes:
        pattern: regular expression.
        path: of the leaf, keys separated by dots; may refer to the pattern's groups.
        transform: from the tensor's array to the leaf's.
        collection: of the leaf.
    """

    pattern: str
    path: str
    transform: Transform = identity
    collection: str = "params"


@dataclass(frozen=True)
class Split:
    """A tensor that packs several leaves along its first axis, such as the kernels of queries, keys and values.

    Attributes:
        paths: one for each leaf; the rest is as in :class:`Rename`.
    """

    pattern: str
    paths: tuple[str, ...]
    transform: Transform = identity
    collection: str = "params"


@dataclass(frozen=True)
class Drop:
    """A tensor that is not part of the module: a task head, or nothing learned, such as position indices."""

    pattern: str


Row = Rename | Split | Drop


def weight_and_bias(name: str, path: str, weight: str, transform: Transform = identity) -> tuple[Rename, Rename]:
    """The rows of a module: tensors ``name.weight`` and ``name.bias``, leaves ``path.<weight>`` and ``path.bias``."""
    return Rename(rf"{name}\.weight", f"{path}.{weight}", transform), Rename(rf"{name}\.bias", f"{path}.bias", flat)


def nested(rows: Sequence[Row], name: str, path: str) -> tuple[Row, ...]:
    """The rows of a model that is a part of another.

    Args:
        name: pattern of what the tensors' names begin with, such as ``visual\\.trunk\\.``.
        path: of the module that the rows' paths are relative to.
    """

    def inner(row: Row) -> Row:
        pattern = rf"{name}(?:{row.pattern})"
        if isinstance(row, Rename):
            return replace(row, pattern=pattern, path=f"{path}.{row.path}")
        if isinstance(row, Split):
            return replace(row, pattern=pattern, paths=tuple(f"{path}.{leaf}" for leaf in row.paths))
        return replace(row, pattern=pattern)

    return tuple(map(inner, rows))


@dataclass(frozen=True)
class NamedTensors:
    """A checkpoint's tensors under the names of a Linen tree.

    Attributes:
        leaves: (collection, key, key, ...) -> array, not yet read.
        names: the same keys -> the tensor's name in the file.
        dropped: tensors that a :class:`Drop` matches.
        unknown: tensors that no row matches.
    """

    leaves: dict[tuple[str, ...], LazyArray]
    names: dict[tuple[str, ...], str]
    dropped: tuple[str, ...]
    unknown: tuple[str, ...]


def apply_table(tensors: Mapping[str, np.ndarray | LazyArray], table: Sequence[Row]) -> NamedTensors:
    """Applies to each tensor the first row whose pattern matches its name.

    Raises:
        ModelError: two tensors become the same leaf, or a row cannot transform a tensor of that shape.
    """
    leaves: dict[tuple[str, ...], LazyArray] = {}
    names: dict[tuple[str, ...], str] = {}
    dropped, unknown = [], []
    patterns = [(row, re.compile(row.pattern)) for row in table]  # once: re's own cache holds fewer than a deep model's
    for name in tensors:
        row, match = next(((row, m) for row, pattern in patterns if (m := pattern.fullmatch(name))), (None, None))
        if row is None or match is None:
            unknown.append(name)
            continue
        if isinstance(row, Drop):
            dropped.append(name)
            continue
        paths = row.paths if isinstance(row, Split) else (row.path,)
        for path, part in zip(paths, _split(tensors[name], len(paths), row.transform, name), strict=True):
            key = (row.collection, *match.expand(path).split("."))
            if key in leaves:
                raise ModelError(f"tensors {names[key]!r} and {name!r} would both become {'/'.join(key)}")
            leaves[key], names[key] = part, name
    return NamedTensors(leaves, names, tuple(dropped), tuple(unknown))


def _split(array: np.ndarray | LazyArray, count: int, transform: Transform, name: str) -> list[LazyArray]:
    """The leaves that a tensor becomes; only its shape is read."""

    def part(tensor: np.ndarray, index: int) -> np.ndarray:
        return transform(np.split(tensor, count)[index] if count > 1 else tensor)

    try:
        shape = part(np.broadcast_to(np.int8(0), array.shape), 0).shape
    except (ValueError, IndexError):
        expected = f"{count} equal parts" if count > 1 else f"{transform.__name__} weights"
        raise ModelError(f"tensor {name!r} has shape {array.shape}, not that of {expected}") from None

    def leaf(index: int) -> LazyArray:
        return LazyArray(shape, lambda: part(np.asarray(array), index))

    return [leaf(i) for i in range(count)]
