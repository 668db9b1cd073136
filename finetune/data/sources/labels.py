"""What every source is read into."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from finetune.data.labeled_images import Images
from finetune.errors import DataError

_T = TypeVar("_T")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class LabeledImages:
    """One split of a source, under class names of its own.

    Attributes:
        images: as in a ``Split``.
        labels: int32 [n], indices into ``names``, or float32 [n, len(names)] of 0 and 1.
        names: the classes that it declares or has.
        where: it is, for messages.
    """

    images: Images
    labels: np.ndarray
    names: tuple[str, ...]
    where: str


def split_called(name: str) -> str | None:
    """train, validation or test, by any name that it goes by."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def by_split(found: Iterable[tuple[str, _T]], where: str) -> dict[str, _T]:
    """Things that have names of splits, under our names. What has another name is training data if it is alone.

    Raises:
        DataError: no training data among them, or two for one split.
    """
    items = list(found)
    if len(items) == 1:
        return {"train": items[0][1]}
    splits: dict[str, _T] = {}
    for name, item in items:
        split = split_called(name)
        if split in splits:
            raise DataError(f"{where}: has two {split} splits: {', '.join(name for name, _ in items)}; remove one")
        if split:
            splits[split] = item
    if "train" not in splits:
        names = ", ".join(name for name, _ in items)
        raise DataError(f"{where}: has no training split; its splits: {names or 'none'}; one has to be called train")
    return splits


def from_names(values: list[str], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(int32 labels, names) of classes given by name; numbers sort as numbers."""
    empty = [i for i, value in enumerate(values) if not value]
    if empty:
        raise DataError(f"{where}: {len(empty)} rows have no label, the first is row {empty[0]}; label or remove them")
    names = sorted_names(set(values))
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[value] for value in values], np.int32), names


def from_sets(values: list[list[str]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(float32 [n, C] of 0 and 1, names) of sets of classes; an image may have none."""
    names = sorted_names({name for row in values for name in row})
    return one_hot([[names.index(name) for name in row] for row in values], len(names)), names


def one_hot(rows: list[list[int]], count: int) -> np.ndarray:
    """float32 [n, count] of 0 and 1."""
    labels = np.zeros((len(rows), count), np.float32)
    for i, row in enumerate(rows):
        labels[i, row] = 1.0
    return labels


def sorted_names(names: set[str]) -> tuple[str, ...]:
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=int) if numeric else sorted(names))
