"""Labels from the columns of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import datasets
import numpy as np

from finetune.data.sources.labels import declared_names, labels_from_name_lists, labels_from_names, multi_hot
from finetune.data.sources.table_rows import row_of, text_of
from finetune.errors import DataError

Lists = Literal["one class", "flags", "classes"]


def read_labels(
    table: datasets.Dataset, column: str | list[str], where: str, lists: Lists = "classes"
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """(labels, class names); None if the labels are withheld.

    Args:
        column: of classes or of lists of them; or the names of columns of 0 and 1.
        lists: what a column of lists has in each row.

    Raises:
        DataError: a row has no label, or a value that is none.
    """
    if isinstance(column, list):
        return _read_columns(table, column, where)
    feature, values = table.features[column], table.select_columns([column])[:][column]
    where = f"{where}: column {column!r}"
    inner = getattr(feature, "feature", None)
    if inner is not None and lists == "one class":
        feature, values = inner, [row[0] for row in values]
    elif inner is not None:
        rows = [[value for value in row or () if value is not None] for row in values]
        names = declared_names(inner.names, where) if isinstance(inner, datasets.ClassLabel) else ()
        if lists == "flags" and len(names) in (0, len(rows[0])):
            return np.array(rows, np.float32), names or tuple(map(str, range(len(rows[0]))))
        if names:
            _check_indices(table, [(i, value) for i, row in enumerate(rows) for value in row], 0, len(names), where)
            return multi_hot(rows, len(names), where), names
        return labels_from_name_lists([[str(name) for name in row] for row in rows], where)
    if isinstance(feature, datasets.ClassLabel):
        names = declared_names(feature.names, where)
        indices = [-1 if value is None else value for value in values]
        _check_indices(table, enumerate(indices), -1, len(names), where)
        labels = np.array(indices, np.int32)
        if (labels < 0).all():
            return None
        if (labels < 0).any():
            first = row_of(table, int(np.argmin(labels)))
            raise DataError(f"{where}: {first} has no label; label or remove such rows")
        return labels, names
    if values and all(value == -1 for value in values):
        return None
    texts = [_class_name(value) for value in values]
    if None in texts:
        at = texts.index(None)
        raise DataError(
            f"{where}: has numbers such as {values[at]:g} in {row_of(table, at)}; classes are texts or integers"
        )
    return labels_from_names([str(text) for text in texts], where, lambda i: row_of(table, i))


def _check_indices(
    table: datasets.Dataset, indices: Iterable[tuple[int, int]], least: int, count: int, where: str
) -> None:
    """That each of the (row, label) is a class; ``least`` is -1 where that means none."""
    for row, label in indices:
        if not least <= label < count:
            raise DataError(f"{where}: {row_of(table, row)} has label {label}, and there are {count} classes")


def kind_of_lists(tables: Iterable[datasets.Dataset], column: str | list[str]) -> Lists:
    """What a column of lists has in each row of all splits: a class, as arrays of shape [n, 1] do; a 0 or 1 for each
    class, where one of both is there twice, as no list of classes has it; or the classes.
    """
    rows: list[list[Any] | None] = []
    for table in tables:
        if isinstance(column, list) or getattr(table.features.get(column), "feature", None) is None:
            return "classes"
        rows += table.select_columns([column])[:][column]
    lengths = {-1 if row is None else len(row) for row in rows}
    if lengths == {1}:
        return "one class"
    whole = [row for row in rows if row is not None]
    flags = len(lengths) == 1 and all(value in (0, 1) and not isinstance(value, str) for row in whole for value in row)
    return "flags" if flags and any(len(set(row)) < len(row) for row in whole) else "classes"


def _class_name(value: Any) -> str | None:
    """The name of a class that is a text, an integer or a whole float; empty for no value, None for other numbers."""
    if not isinstance(value, float):
        return text_of(value)
    if math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() else None


def _read_columns(table: datasets.Dataset, columns: list[str], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    rows = table.select_columns(columns)[:]
    for name in columns:
        if invalid := [i for i, value in enumerate(rows[name]) if value not in (0, 1)]:
            received = f"has {rows[name][invalid[0]]!r} in {row_of(table, invalid[0])}"
            raise DataError(f"{where}: column {name!r} must be 0 or 1 in each row; {received}")
    return np.stack([np.array(rows[name], np.float32) for name in columns], axis=1), tuple(columns)
