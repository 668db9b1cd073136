"""Which column of a table holds the images, which the labels: told by their types, never guessed by their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from finetune.data.sources.labels import split_called
from finetune.errors import DataError, nearest
from finetune.images.open import EXTENSIONS
from finetune.recipe import Columns


@dataclass(frozen=True)
class Roles:
    """Names of columns; several for the label mean a column of 0 and 1 for each class."""

    image: str
    label: str | list[str]
    split: str | None


def find_roles(dataset: Any, given: Columns, where: str) -> Roles:
    """Raises DataError where the types leave a choice; it lists the columns."""
    kinds = {name: _kind(dataset, name) for name in dataset.column_names}
    named = [given.image, given.split, *(given.label if isinstance(given.label, list) else [given.label])]
    for name in named:
        if name is not None and name not in kinds:
            raise DataError(f"{where}: has no column {name!r}{nearest(name, kinds)}; it has {', '.join(kinds)}")
    taken = {name for name in named if name is not None}
    image = given.image or _only([n for n, kind in kinds.items() if kind in _IMAGES], "image", kinds, where)
    if kinds[image] not in (*_IMAGES, "text"):
        raise DataError(f"{where}: column {image!r} holds no images: {kinds[image]}")
    split = given.split or next((n for n in kinds if n not in taken and _names_splits(dataset, n, kinds[n])), None)
    rest = {n: kind for n, kind in kinds.items() if n not in taken | {image, split}}
    return Roles(image, given.label or _label(rest, kinds, where), split)


_IMAGES = ("image", "image path")


def _label(rest: dict[str, str], kinds: dict[str, str], where: str) -> str:
    """A column of classes; or where there is none, the one column left that could name them."""
    for wanted in (("class",), ("set of classes",), ("text", "number")):
        if found := [name for name, kind in rest.items() if kind in wanted]:
            return _only(found, "label", kinds, where)
    return _only([], "label", kinds, where)


def _only(found: list[str], role: str, kinds: dict[str, str], where: str) -> str:
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} columns could be the {role}: {', '.join(found)}" if found else f"no column looks like {role}s"
    columns = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    raise DataError(f"{where}: {what}; name it as data.columns.{role}; columns: {columns}")


def _kind(dataset: Any, name: str) -> str:
    import datasets

    feature = dataset.features[name]
    if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"}):
        return "image"
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel | datasets.Value):
        names = isinstance(inner, datasets.ClassLabel) or inner.dtype in (*_TEXT, *_WHOLE)
        return "set of classes" if names else "numbers"
    dtype = str(getattr(feature, "dtype", "other"))
    if dtype == "binary":
        return "image"
    if dtype in _TEXT:
        return "image path" if _all(dataset, name, _is_image_path) else "text"
    return "number" if dtype in _WHOLE else dtype


_TEXT = ("string", "large_string")
_WHOLE = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
_SAMPLE = 100  # rows that tell what a column of text is


def _all(dataset: Any, name: str, test: Any) -> bool:
    values = [value for value in dataset.select_columns([name])[:_SAMPLE][name] if value]
    return bool(values) and all(test(value) for value in values)


def _is_image_path(value: str) -> bool:
    return PurePath(value).suffix.lower() in EXTENSIONS


def _names_splits(dataset: Any, name: str, kind: str) -> bool:
    if kind != "text" or not _all(dataset, name, split_called):
        return False
    return all(split_called(value or "") for value in dataset.unique(name))
