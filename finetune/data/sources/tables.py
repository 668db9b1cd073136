"""Tables of images and labels: CSV, Parquet, and every dataset of the ``datasets`` library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from finetune.data.labeled_images import EncodedImages, Images, LabeledImages
from finetune.data.sources.columns import ColumnRoles, infer_roles
from finetune.data.sources.labels import labels_from_name_lists, labels_from_names, multi_hot
from finetune.data.sources.split_names import by_canonical_split
from finetune.errors import DataError, first_line
from finetune.recipe import Columns, DataConfig

datasets.disable_progress_bars()


def read_csv(path: Path, config: DataConfig) -> dict[str, LabeledImages]:
    """Comma- or tab-separated, with a header. Image paths are relative to its folder; class names are as written."""
    table = _parse_csv(path, {})
    roles = infer_roles(table, config.columns, str(path))
    if isinstance(roles.label, str):  # as text, so that a class "001" is not 1, and "true" is not True
        table = _parse_csv(path, {roles.label: "string"})
    columns = Columns(image=roles.image, label=roles.label, split=roles.split)
    return _read_splits({"train": table}, config.model_copy(update={"columns": columns}), str(path), path.parent)


def _parse_csv(path: Path, column_types: dict[str, str]) -> datasets.Dataset:
    from pyarrow import csv

    try:
        parsing = csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        conversion = csv.ConvertOptions(column_types=column_types)
        table = csv.read_csv(path, parse_options=parsing, convert_options=conversion)
    except Exception as error:  # pyarrow raises many types
        raise DataError(f"{path}: cannot be read as a table: {first_line(error)}") from None
    return datasets.Dataset(table)


def read_parquet(path: Path, config: DataConfig) -> dict[str, LabeledImages]:
    """A file, or a folder of files whose names begin with their split, or that are in folders named by their split."""
    files = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")])
    groups: dict[str, list[str]] = {}
    for file in files:
        first_word = re.split(r"[^A-Za-z]", file.stem)[0]
        name = first_word if file.parent in (path, path.parent) else file.parent.name
        groups.setdefault(name, []).append(str(file))
    splits = by_canonical_split(groups.items(), str(path))
    try:
        tables = {split: datasets.Dataset.from_parquet(names, split=split) for split, names in splits.items()}
    except Exception as error:  # pyarrow and datasets raise many types
        cause = error.__cause__ or error
        raise DataError(f"{path}: cannot be read as Parquet: {first_line(cause)}") from None
    return _read_splits(tables, config, str(path), path if path.is_dir() else path.parent)


def read_saved(path: Path, config: DataConfig) -> dict[str, LabeledImages]:
    """A folder that ``save_to_disk`` wrote."""
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow and json raise many types
        raise DataError(f"{path}: cannot be read as a saved dataset: {first_line(error)}") from None
    return _read_splits(_by_split(saved, str(path)), config, str(path), path)


def read_hub(config: DataConfig) -> dict[str, LabeledImages]:
    """A dataset of the Hugging Face hub, except for those that need their own code to be run."""
    try:
        loaded = datasets.load_dataset(config.source, config.subset, revision=config.revision)
    except Exception as error:  # network, cache, configuration: datasets raises many types
        raise DataError(
            f"data.source: {config.source}: no such folder, and it cannot be loaded from the hub: {first_line(error)}"
        ) from None
    return _read_splits(_by_split(loaded, config.source), config, config.source, None)


def read_memory(memory: Any, config: DataConfig) -> dict[str, LabeledImages]:
    """A ``datasets.Dataset``, or a mapping from split names to datasets."""
    if memory is None:
        raise DataError("data.source: memory needs the datasets themselves: finetune.run(recipe, data=...)")
    return _read_splits(_by_split(memory, "data"), config, "data", None)


def _by_split(data: Any, where: str) -> dict[str, datasets.Dataset]:
    if isinstance(data, datasets.Dataset):
        return {"train": data}
    if not isinstance(data, Mapping) or not all(isinstance(item, datasets.Dataset) for item in data.values()):
        raise DataError(
            f"{where}: must be a datasets.Dataset, or a mapping from split names to datasets; is {type(data)}"
        )
    return by_canonical_split(data.items(), where)


def _read_splits(
    tables: dict[str, datasets.Dataset], config: DataConfig, where: str, base: Path | None
) -> dict[str, LabeledImages]:
    """
    Args:
        base: the folder that image paths are relative to; None for the working directory.
    """
    tables = {split: table.with_format(None) for split, table in tables.items() if len(table)}
    if "train" not in tables:
        raise DataError(f"{where}: has no rows to train on")
    roles = infer_roles(tables["train"], config.columns, where)
    if roles.split is not None and list(tables) == ["train"]:
        tables = _split_by_column(tables["train"], roles.split, where)
    splits = {split: _read_split(table, roles, f"{where} ({split})", base) for split, table in tables.items()}
    if splits["train"] is None:
        raise DataError(f"{where} (train): every label is -1, which means none; choose a column with classes")
    return {split: images for split, images in splits.items() if images is not None}


def _split_by_column(table: datasets.Dataset, column: str, where: str) -> dict[str, datasets.Dataset]:
    values = np.array(table.select_columns([column])[:][column], dtype=object)
    parts = [(str(name), table.select(np.flatnonzero(values == name))) for name in dict.fromkeys(values)]
    if len(parts) == 1 and parts[0][0] != "train":
        raise DataError(f"{where}: column {column!r} says {parts[0][0]!r} in every row; none says train")
    return by_canonical_split(parts, f"{where}: column {column!r}")


def _read_split(table: datasets.Dataset, roles: ColumnRoles, where: str, base: Path | None) -> LabeledImages | None:
    """None for a split without labels: many test sets on the hub withhold them."""
    needed = [roles.image, *(roles.label if isinstance(roles.label, list) else [roles.label])]
    if missing := [name for name in needed if name not in table.column_names]:
        raise DataError(f"{where}: has no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    labels = _read_labels(table, roles.label, where)
    return None if labels is None else LabeledImages(_read_images(table, roles.image, base, where), *labels, where)


def _read_images(table: datasets.Dataset, column: str, base: Path | None, where: str) -> Images:
    table, feature = table.select_columns([column]), table.features[column]
    if getattr(feature, "dtype", "") in ("string", "large_string"):
        paths = table[:][column]
        if empty := [i for i, path in enumerate(paths) if not path]:
            raise DataError(f"{where}: column {column!r} is empty in {len(empty)} rows, the first is row {empty[0]}")
        return [(base or Path()) / path for path in paths]
    return EncodedImages(table.cast_column(column, datasets.Image(decode=False)), column)


def _read_labels(
    table: datasets.Dataset, column: str | list[str], where: str
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """(labels, class names); None if the labels are withheld."""
    if isinstance(column, list):
        return _read_label_columns(table, column, where)
    feature, values = table.features[column], table.select_columns([column])[:][column]
    where = f"{where}: column {column!r}"
    inner = getattr(feature, "feature", None)
    if inner is not None:
        if isinstance(inner, datasets.ClassLabel):
            return multi_hot([list(row or ()) for row in values], len(inner.names)), tuple(inner.names)
        return labels_from_name_lists([[str(name) for name in row or ()] for row in values])
    if isinstance(feature, datasets.ClassLabel):
        labels = np.array([-1 if value is None else value for value in values], np.int32)
        if (labels < 0).all():
            return None
        if (labels < 0).any():
            raise DataError(f"{where}: row {int(np.argmin(labels))} has no label; label or remove such rows")
        return labels, tuple(feature.names)
    return labels_from_names(["" if value is None else str(value) for value in values], where)


def _read_label_columns(table: datasets.Dataset, columns: list[str], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    rows = table.select_columns(columns)[:]
    for name in columns:
        if invalid := [value for value in rows[name] if value not in (0, 1)]:
            raise DataError(f"{where}: column {name!r} must be 0 or 1 in each row; has {invalid[0]!r}")
    return np.stack([np.array(rows[name], np.float32) for name in columns], axis=1), tuple(columns)
