"""Which column of a table holds the images, the labels and the splits: inferred from types, never from names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune.data.sources.split_names import canonical_split
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
            columns.
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
        (n for n in types if n not in stated and _is_split_column(dataset, n, types[n])), None
    )
    others = {name: type_ for name, type_ in types.items() if name not in (*stated, image, split)}
    return ColumnRoles(image, columns.label or _label_column(others, types, where), split)


LINE = "__line__"  # column of a table from a text file: the number of each row's line
_IMAGES = ("image", "image path")
_TEXT = ("string", "large_string")
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
        names = isinstance(inner, datasets.ClassLabel) or inner.dtype in (*_TEXT, *_INTEGERS)
        return "set of classes" if names else "numbers"
    dtype = str(getattr(feature, "dtype", "other"))
    if dtype == "binary":
        return "image"
    if dtype in _TEXT:
        return "image path" if _sample_satisfies(dataset, name, _is_image_path) else "text"
    if dtype in _FLOATS and _sample_satisfies(dataset, name, lambda value: float(value).is_integer()):
        return "number"
    return "number" if dtype in _INTEGERS else dtype


def _sample_satisfies(dataset: Any, name: str, test: Callable[[Any], Any]) -> bool:
    values = [value for value in dataset.select_columns([name])[:_SAMPLE][name] if value or value == 0.0]
    return bool(values) and all(test(value) for value in values)


def _is_image_path(value: str) -> bool:
    return is_named_like_an_image(value)


def _is_split_column(dataset: Any, name: str, type_: str) -> bool:
    if type_ != "text" or not _sample_satisfies(dataset, name, canonical_split):
        return False
    return all(canonical_split(value or "") for value in dataset.unique(name))
