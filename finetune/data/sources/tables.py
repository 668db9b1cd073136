"""Tables of images and labels: CSV, Parquet, and every dataset of the ``datasets`` library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from finetune.data.labeled_images import EncodedImages, Images
from finetune.data.sources.columns import Roles, find_roles
from finetune.data.sources.labels import LabeledImages, by_split, from_names, from_sets, one_hot
from finetune.errors import DataError, first_line
from finetune.recipe import Columns, DataConfig

datasets.disable_progress_bars()


def read_csv(path: Path, config: DataConfig) -> dict[str, LabeledImages]:
    """Comma- or tab-separated, with a header; paths are relative to the file's folder, class names are as written."""
    table = _parse(path, {})
    roles = find_roles(table, config.columns, str(path))
    if isinstance(roles.label, str):  # as text: a class "001" is not 1, and "true" is not True
        table = _parse(path, {roles.label: "string"})
    columns = Columns(image=roles.image, label=roles.label, split=roles.split)
    return _splits({"train": table}, config.model_copy(update={"columns": columns}), str(path), path.parent)


def _parse(path: Path, types: dict[str, str]) -> datasets.Dataset:
    from pyarrow import csv

    try:
        options = csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        table = csv.read_csv(path, parse_options=options, convert_options=csv.ConvertOptions(column_types=types))
    except Exception as error:  # pyarrow raises many kinds
        raise DataError(f"{path}: cannot be read as a table: {first_line(error)}") from None
    return datasets.Dataset(table)


def read_parquet(path: Path, config: DataConfig) -> dict[str, LabeledImages]:
    """A file, or a folder of files that begin with their split's name, or are in a folder of that name."""
    files = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")])
    groups: dict[str, list[str]] = {}
    for file in files:
        first = re.split(r"[^A-Za-z]", file.stem)[0]
        groups.setdefault(file.parent.name if file.parent not in (path, path.parent) else first, []).append(str(file))
    chosen = by_split(groups.items(), str(path))
    try:
        found = {split: datasets.Dataset.from_parquet(names, split=split) for split, names in chosen.items()}
    except Exception as error:  # a damaged file: pyarrow and datasets raise many kinds
        cause = error.__cause__ or error
        raise DataError(f"{path}: cannot be read as Parquet: {first_line(cause)}") from None
    return _splits(found, config, str(path), path if path.is_dir() else path.parent)


def read_saved(path: Path, config: DataConfig) -> dict[str, LabeledImages]:
    """What ``save_to_disk`` wrote."""
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow and json raise many kinds
        raise DataError(f"{path}: not a saved dataset that can be read: {first_line(error)}") from None
    return _splits(_mapping(found, str(path)), config, str(path), path)


def read_hub(config: DataConfig) -> dict[str, LabeledImages]:
    """A dataset of the Hugging Face hub; none that comes as code."""
    try:
        found = datasets.load_dataset(config.source, config.subset, revision=config.revision)
    except Exception as error:  # network, cache, configuration: datasets raises many kinds
        raise DataError(
            f"data.source: {config.source}: no such folder, and it cannot be loaded from the hub: {first_line(error)}"
        ) from None
    return _splits(_mapping(found, config.source), config, config.source, None)


def read_memory(memory: Any, config: DataConfig) -> dict[str, LabeledImages]:
    """A ``datasets.Dataset``, or a mapping of split names to some."""
    if memory is None:
        raise DataError("data.source: memory needs the datasets themselves: finetune.run(recipe, data=...)")
    return _splits(_mapping(memory, "data"), config, "data", None)


def _mapping(found: Any, where: str) -> dict[str, datasets.Dataset]:
    if isinstance(found, datasets.Dataset):
        return {"train": found}
    if not isinstance(found, Mapping) or not all(isinstance(item, datasets.Dataset) for item in found.values()):
        raise DataError(f"{where}: needs a datasets.Dataset, or a mapping of split names to some; is {type(found)}")
    return by_split(found.items(), where)


def _splits(
    found: dict[str, datasets.Dataset], config: DataConfig, where: str, base: Path | None
) -> dict[str, LabeledImages]:
    found = {split: dataset.with_format(None) for split, dataset in found.items() if len(dataset)}
    if "train" not in found:
        raise DataError(f"{where}: has no rows to train on")
    roles = find_roles(found["train"], config.columns, where)
    if roles.split is not None and list(found) == ["train"]:
        found = _by_column(found["train"], roles.split, where)
    read = {split: _labelled(dataset, roles, f"{where} ({split})", base) for split, dataset in found.items()}
    if read["train"] is None:
        raise DataError(f"{where} (train): every label is -1, which means none; choose a column with classes")
    return {split: labelled for split, labelled in read.items() if labelled is not None}


def _by_column(dataset: datasets.Dataset, column: str, where: str) -> dict[str, datasets.Dataset]:
    values = np.array(dataset.select_columns([column])[:][column], dtype=object)
    rows = [(str(name), dataset.select(np.flatnonzero(values == name))) for name in dict.fromkeys(values)]
    if len(rows) == 1 and rows[0][0] != "train":
        raise DataError(f"{where}: column {column!r} says {rows[0][0]!r} in every row; none says train")
    return by_split(rows, f"{where}: column {column!r}")


def _labelled(dataset: datasets.Dataset, roles: Roles, where: str, base: Path | None) -> LabeledImages | None:
    """None for a split whose labels are withheld, as hub datasets do with their test sets."""
    needed = [roles.image, *(roles.label if isinstance(roles.label, list) else [roles.label])]
    if missing := [name for name in needed if name not in dataset.column_names]:
        raise DataError(f"{where}: has no column {missing[0]!r}; it has {', '.join(dataset.column_names)}")
    found = _labels(dataset, roles.label, where)
    return None if found is None else LabeledImages(_images(dataset, roles.image, base, where), *found, where)


def _images(dataset: datasets.Dataset, column: str, base: Path | None, where: str) -> Images:
    dataset, feature = dataset.select_columns([column]), dataset.features[column]
    if getattr(feature, "dtype", "") in ("string", "large_string"):
        paths = dataset[:][column]
        if empty := [i for i, path in enumerate(paths) if not path]:
            raise DataError(f"{where}: column {column!r} is empty in {len(empty)} rows, the first is row {empty[0]}")
        return [(base or Path()) / path for path in paths]
    return EncodedImages(dataset.cast_column(column, datasets.Image(decode=False)), column)


def _labels(
    dataset: datasets.Dataset, column: str | list[str], where: str
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    if isinstance(column, list):
        return _indicators(dataset, column, where)
    feature, values = dataset.features[column], dataset.select_columns([column])[:][column]
    where = f"{where}: column {column!r}"
    inner = getattr(feature, "feature", None)
    if inner is not None:
        if isinstance(inner, datasets.ClassLabel):
            return one_hot([list(row or ()) for row in values], len(inner.names)), tuple(inner.names)
        return from_sets([[str(name) for name in row or ()] for row in values])
    if isinstance(feature, datasets.ClassLabel):
        labels = np.array([-1 if value is None else value for value in values], np.int32)
        if (labels < 0).all():
            return None
        if (labels < 0).any():
            raise DataError(f"{where}: row {int(np.argmin(labels))} has no label; label or remove such rows")
        return labels, tuple(feature.names)
    return from_names(["" if value is None else str(value) for value in values], where)


def _indicators(dataset: datasets.Dataset, columns: list[str], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    rows = dataset.select_columns(columns)[:]
    for name in columns:
        if bad := [value for value in rows[name] if value not in (0, 1)]:
            raise DataError(f"{where}: column {name!r} must be 0 or 1 in each row; has {bad[0]!r}")
    return np.stack([np.array(rows[name], np.float32) for name in columns], axis=1), tuple(columns)
