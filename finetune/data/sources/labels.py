"""Label arrays and class names, from labels as sources give them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from finetune.errors import DataError, cut

_MANY_CLASSES, _MOST_BYTES = 10_000, 1 << 29  # of labels [n, C]
_DIGITS = 4000  # Python makes no integers of more


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
    clean = one_spelling_each(values, where)
    empty = [i for i, value in enumerate(values) if not clean[value]]
    if empty:
        raise DataError(f"{where}: {len(empty)} rows have no label, the first is {row(empty[0])}; label or remove them")
    names = sort_names(set(clean.values()))
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[clean[value]] for value in values], np.int32), names


def labels_from_name_lists(rows: list[list[str]], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(labels float32 [n, C] of 0 and 1, class names) from the class names of each image, which may be none.

    Raises:
        DataError: a name is empty.
    """
    clean = one_spelling_each((name for row in rows for name in row), where)
    empty = [i for i, names in enumerate(rows) if not all(clean[name] for name in names)]
    if empty:
        raise DataError(
            f"{where}: {len(empty)} rows have an empty label, the first is row {empty[0]}; name or remove it"
        )
    names = sort_names(set(clean.values()))
    index = {name: i for i, name in enumerate(names)}
    return multi_hot([[index[clean[name]] for name in row] for row in rows], len(names), where), names


def one_spelling_each(values: Iterable[str], where: str) -> dict[str, str]:
    """Every text that names a class -> the class name.

    Raises:
        DataError: two texts are one name in different Unicode forms, or a name has characters that cannot be shown.
    """
    clean: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for value in dict.fromkeys(values):
        name = clean[value] = clean_name(value)
        other = spelled.setdefault(name, value.strip())
        if other != value.strip():
            raise DataError(f"{where}: {_one_name(other, value)}; write it one way")
        if unprintable := next((character for character in name if _is_unprintable(character)), None):
            raise DataError(f"{where}: class {cut(ascii(name))} has the character {unprintable!a}; rename it")
    return clean


def declared_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Class names as a source declares them, cleaned.

    Raises:
        DataError: two are equal, or one is empty or has characters that cannot be shown.
    """
    declared: dict[str, str] = {}
    for name, clean in zip(names, map(one_spelling_each(names, where).__getitem__, names), strict=True):
        if not clean:
            raise DataError(f"{where}: class {len(declared)} has no name; give it one")
        if clean in declared:
            raise DataError(f"{where}: {_one_name(declared[clean], name)}; give each class a name of its own")
        declared[clean] = name
    return tuple(declared)


def _one_name(first: str, second: str) -> str:
    if first == second:
        return f"two classes are called {cut(repr(first))}"
    return f"{cut(ascii(first))} and {cut(ascii(second))} are one name, in other Unicode forms or with spaces around it"


def _is_unprintable(character: str) -> bool:
    """Control characters, which a terminal would obey, and halves of surrogate pairs, which no file can hold."""
    return unicodedata.category(character) in ("Cc", "Cs")


def multi_hot(rows: list[list[int]], num_classes: int, where: str) -> np.ndarray:
    """float32 [n, num_classes] of 0 and 1, from the class indices of each image.

    Raises:
        DataError: the labels do not fit into memory.
    """
    if num_classes > _MANY_CLASSES and 4 * len(rows) * num_classes > _MOST_BYTES:
        raise DataError(f"{where}: {len(rows):,} images times {num_classes:,} classes are too many labels to hold")
    labels = np.zeros((len(rows), num_classes), np.float32)
    for i, row in enumerate(rows):
        labels[i, row] = 1.0
    return labels


def sort_names(names: set[str]) -> tuple[str, ...]:
    """Numerically if all names are numbers, else alphabetically."""
    numeric = all(name.isdecimal() and len(name) < _DIGITS for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name)) if numeric else sorted(names))
