"""Which column of a table holds the images, the labels and the splits: inferred from types, never from names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune.data.sources.split_names import canonical_split
from finetune.data.sources.table_rows import LINE, rows_of, text_of
from finetune.errors import DataError, nearest
from finetune.images.formats import is_named_like_an_image
from finetune.recipe import Columns


@dataclass(frozen=True)
class ColumnRoles:
    """Names of columns.

    Attributes:
        label: a list of names for a column of 0 and 1 for each class.
    """

    image: str
    label: str | list[str]
    split: str | None


def infer_roles(dataset: Any, columns: Columns, where: str) -> ColumnRoles:
    """The roles that ``columns`` states, and the others inferred from the columns of a ``datasets.Dataset``.

    Raises:
        DataError: a stated column is missing or has the wrong type, or not exactly one column fits a role. Lists the
            columns. Or a column says the splits of most rows, and not of all.
    """
    types = {name: _column_type(dataset, name) for name in dataset.column_names if name != LINE}
    labels = columns.label if isinstance(columns.label, list) else [columns.label]
    stated = [name for name in (columns.image, columns.split, *labels) if name is not None]
    for name in stated:
        if name not in types:
            raise DataError(f"{where}: has no column {name!r}{nearest(name, types)}; it has {', '.join(types)}")
    images = [name for name, type_ in types.items() if type_ in _IMAGES]
    image = columns.image or _only(images, "image", types, where)
    if types[image] not in (*_IMAGES, "text"):
        raise DataError(f"{where}: column {image!r} holds no images: {types[image]}")
    split = columns.split or next(
        (n for n in types if n not in stated and _is_split_column(dataset, n, types[n], where)), None
    )
    others = {name: type_ for name, type_ in types.items() if name not in (*stated, image, split)}
    return ColumnRoles(image, columns.label or _label_column(others, types, where), split)


_IMAGES = ("image", "image path")
TEXT = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "binary_view")
_INTEGERS = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
_FLOATS = ("float16", "float32", "float64")
_SAMPLE = 100  # rows of a text column that are looked at to see what it holds


def _label_column(others: dict[str, str], types: dict[str, str], where: str) -> str:
    """The column of classes; if there is none, of lists of classes; if there is none, the one of text or integers."""
    for accepted in (("class",), ("set of classes",), ("text", "number")):
        if candidates := [name for name, type_ in others.items() if type_ in accepted]:
            return _only(candidates, "label", types, where)
    return _only([], "label", types, where)


def _only(candidates: list[str], role: str, types: dict[str, str], where: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    problem = f"no column looks like {role}s"
    if candidates:
        problem = f"{len(candidates)} columns could be the {role}: {', '.join(candidates)}"
    columns = ", ".join(f"{name} ({type_})" for name, type_ in types.items())
    raise DataError(f"{where}: {problem}; name it as data.columns.{role}; columns: {columns}")


def _column_type(dataset: Any, name: str) -> str:
    """In words that a message can use."""
    import datasets

    feature = dataset.features[name]
    if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"}):
        return "image"
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel | datasets.Value):
        names = isinstance(inner, datasets.ClassLabel) or inner.dtype in (*TEXT, *_INTEGERS)
        return "set of classes" if names else "numbers"
    dtype = str(getattr(feature, "dtype", "other"))
    if dtype in _BYTES:
        return "image"
    if dtype in TEXT:
        return "image path" if _sample_satisfies(dataset, name, _is_image_path) else "text"
    if dtype in _FLOATS and _sample_satisfies(dataset, name, lambda value: float(value).is_integer()):
        return "number"
    return "number" if dtype in _INTEGERS else dtype


def _sample_satisfies(dataset: Any, name: str, test: Callable[[Any], Any]) -> bool:
    values = [value for value in dataset.select_columns([name])[:_SAMPLE][name] if value or value == 0.0]
    return bool(values) and all(test(value) for value in values)


def _is_image_path(value: str) -> bool:
    return is_named_like_an_image(value)


def _is_split_column(dataset: Any, name: str, type_: str, where: str) -> bool:
    """Whether every row's text is a split's name.

    Raises:
        DataError: most rows' are, of two splits or more, and some are not.
    """
    if type_ != "text" or not any(map(canonical_split, map(text_of, dataset.select_columns([name])[:_SAMPLE][name]))):
        return False
    split_of = {value: canonical_split(text_of(value)) for value in dataset.unique(name)}
    splits = set(split_of.values()) - {None}
    if not splits or None not in split_of.values():
        return bool(splits)
    values = dataset.select_columns([name])[:][name]
    others = [i for i, value in enumerate(values) if split_of[value] is None]
    if len(splits) < 2 or "train" not in splits or len(others) > len(values) / 2:
        return False
    received = f"{text_of(values[others[0]])!r} in {rows_of(dataset, others)}"
    raise DataError(
        f"{where}: column {name!r} says the split of {len(values) - len(others)} rows, and {received}; correct it, or "
        f"state data.columns.split: {name}, which leaves such rows out"
    )
