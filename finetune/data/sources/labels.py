"""Label arrays and class names, from labels as sources give them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np

from finetune.errors import DataError


def clean_name(name: str) -> str:
    """A class name in Unicode's composed form, without spaces around it."""
    return unicodedata.normalize("NFC", name).strip()


def labels_from_names(
    values: list[str], where: str, row: Callable[[int], str] = "row {}".format
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(labels int32 [n], class names) from the class name of each image.

    Args:
        row: says where a value is.

    Raises:
        DataError: a name is empty.
    """
    values = [clean_name(value) for value in values]
    empty = [i for i, value in enumerate(values) if not value]
    if empty:
        raise DataError(f"{where}: {len(empty)} rows have no label, the first is {row(empty[0])}; label or remove them")
    names = sort_names(set(values))
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[value] for value in values], np.int32), names


def labels_from_name_lists(rows: list[list[str]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(labels float32 [n, C] of 0 and 1, class names) from the class names of each image, which may be none."""
    rows = [[clean_name(name) for name in row] for row in rows]
    names = sort_names({name for row in rows for name in row})
    return multi_hot([[names.index(name) for name in row] for row in rows], len(names)), names


def unify_names(labels: np.ndarray, names: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(labels, names) with names that are equal made one class; labels are int32 [n]."""
    unique = tuple(dict.fromkeys(names))
    return np.array([unique.index(name) for name in names], np.int32)[labels], unique


def multi_hot(rows: list[list[int]], num_classes: int) -> np.ndarray:
    """float32 [n, num_classes] of 0 and 1, from the class indices of each image."""
    labels = np.zeros((len(rows), num_classes), np.float32)
    for i, row in enumerate(rows):
        labels[i, row] = 1.0
    return labels


def sort_names(names: set[str]) -> tuple[str, ...]:
    """Numerically if all names are numbers, else alphabetically."""
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=int) if numeric else sorted(names))
