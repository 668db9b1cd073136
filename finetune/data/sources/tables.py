"""Tables of images and labels: CSV, Parquet, and every dataset of the ``datasets`` library."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from finetune.data.labeled_images import EncodedImages, Images, LabeledImages, local_path
from finetune.data.sources.columns import LINE, ColumnRoles, infer_roles
from finetune.data.sources.csv_text import read_text_table
from finetune.data.sources.parquet import check_parquet, unreadable
from finetune.data.sources.split_names import by_canonical_split, canonical_split, describe_unused
from finetune.data.sources.table_labels import has_one_label_each, read_labels, row_of, text_of
from finetune.errors import DataError, first_line
from finetune.files import file_state
from finetune.recipe import Columns, DataConfig

_INT64 = 1 << 63  # larger integers fit in no column

datasets.disable_progress_bars()
datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs as an error, it raises too


def read_csv(path: Path, config: DataConfig) -> dict[str, LabeledImages]:
    """With any usual delimiter and encoding. Image paths are relative to its folder; class names are as written."""
    text = read_text_table(path)
    texts = {name: [row[i] for row in text.rows] for i, name in enumerate(text.columns)}
    columns = {name: _numbers(values) for name, values in texts.items()}
    table = datasets.Dataset.from_dict({**columns, LINE: text.lines})
    roles = infer_roles(table, config.columns, str(path))
    if isinstance(roles.label, str):  # as text, so that a class "001" is not 1
        table = datasets.Dataset.from_dict(
            {**columns, roles.label: _without_point(texts[roles.label]), LINE: text.lines}
        )
    stated = Columns(image=roles.image, label=roles.label, split=roles.split)
    config = config.model_copy(update={"columns": stated})
    return _read_splits({"train": table}, config, str(path), path.parent, text.notes)


def _numbers(values: list[str]) -> list[Any]:
    """Texts as integers or floats where all of them are such, with None for empty ones."""
    if not any(values):
        return list(values)
    for number in (int, float):
        try:
            numbers = [number(value) if value else None for value in values]
        except ValueError:
            continue
        if number is float or max(abs(value) for value in numbers if value is not None) < _INT64:
            return numbers
    return list(values)


def _without_point(values: list[str]) -> list[str]:
    """``1.0`` as ``1``, where all values are like that: a program that knew only floats has written them."""
    if all(re.fullmatch(r"-?\d+\.0*", value) for value in values):
        return [value.split(".")[0] for value in values]
    return values


def read_parquet(path: Path, config: DataConfig, *, verify: bool = False) -> dict[str, LabeledImages]:
    """A file, or a folder of files whose names, or whose folders' names, say their split.

    Paths of images are relative to their file's folder. ``verify`` reads the files again, whatever is cached of them.
    """
    files = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")])
    for file in files:
        check_parquet(file)
    splits = {"train": files} if path.is_file() else _files_by_split(files, path)
    folders = {split: {file.parent for file in group} for split, group in splits.items()}
    bases = {split: parents.pop() if len(parents) == 1 else path for split, parents in folders.items()}
    try:
        tables = {
            split: datasets.Dataset.from_parquet(
                [str(file) for file in group], split=split, cache_dir=str(_cache_of(group, verify))
            )
            for split, group in splits.items()
        }
    except Exception as error:  # pyarrow and datasets raise many types
        raise unreadable(path, error) from None
    return _read_splits(tables, config, str(path), bases)


def _cache_of(files: list[Path], verify: bool) -> Path:
    """A folder for the tables that ``datasets`` makes of these files; for itself it would look at their times alone."""
    states = "\n".join(f"{file.absolute()} {file_state(file)}" for file in files)
    name = hashlib.sha256(states.encode(errors="surrogateescape")).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "finetune" / name
    if verify:
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def _files_by_split(files: list[Path], folder: Path) -> dict[str, list[Path]]:
    groups: dict[str | None, list[Path]] = {}
    for file in files:
        split = canonical_split(file.stem, loose=True)
        if split is None and file.parent != folder:
            split = canonical_split(file.parent.name, loose=True)
        groups.setdefault(split, []).append(file)
    if set(groups) == {None}:
        return {"train": files}
    if None in groups:
        name = groups[None][0]
        raise DataError(f"{name}: its name says no split, and other files' names do: call it train-{name.name}")
    if "train" not in groups:
        raise DataError(f"{folder}: has no training split; its splits: {', '.join(map(str, groups))}; name one train")
    return {str(split): group for split, group in groups.items()}


def read_saved(path: Path, config: DataConfig) -> dict[str, LabeledImages]:
    """A folder that ``save_to_disk`` wrote."""
    for file in path.rglob("*.arrow"):
        if not file.is_file():
            raise DataError(f"{file}: not a file; save the dataset anew")
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow and json raise many types
        raise DataError(f"{path}: cannot be read as a saved dataset: {first_line(error)}") from None
    tables, notes = _by_split(saved, str(path))
    return _read_splits(tables, config, str(path), path, notes)


def read_hub(config: DataConfig) -> dict[str, LabeledImages]:
    """A dataset of the Hugging Face hub, except for those that need their own code to be run."""
    try:
        loaded = datasets.load_dataset(config.source, config.subset, revision=config.revision)
    except Exception as error:  # network, cache, configuration: datasets raises many types
        raise DataError(
            f"data.source: {config.source}: no such folder, and it cannot be loaded from the hub: {first_line(error)}"
        ) from None
    tables, notes = _by_split(loaded, config.source)
    return _read_splits(tables, config, config.source, None, notes)


def read_memory(memory: Any, config: DataConfig) -> dict[str, LabeledImages]:
    """A ``datasets.Dataset``, or a mapping from split names to datasets."""
    if memory is None:
        raise DataError("data.source: memory needs the datasets themselves: finetune.run(recipe, data=...)")
    tables, notes = _by_split(memory, "data")
    return _read_splits(tables, config, "data", None, notes)


def _by_split(data: Any, where: str) -> tuple[dict[str, datasets.Dataset], tuple[str, ...]]:
    """The tables by split, and lines about those that are not used."""
    if isinstance(data, datasets.Dataset):
        return {"train": data}, ()
    if not isinstance(data, Mapping) or not all(isinstance(item, datasets.Dataset) for item in data.values()):
        raise DataError(
            f"{where}: must be a datasets.Dataset, or a mapping from split names to datasets; is {type(data)}"
        )
    splits, unused = by_canonical_split(data.items(), where)
    return splits, describe_unused(unused, where)


def _read_splits(
    tables: dict[str, datasets.Dataset],
    config: DataConfig,
    where: str,
    base: Path | dict[str, Path] | None,
    notes: tuple[str, ...] = (),
) -> dict[str, LabeledImages]:
    """
    Args:
        base: the folder that image paths are relative to, or that of each split; None for the working directory.
        notes: about the tables.
    """
    tables = {split: table.with_format(None) for split, table in tables.items() if len(table)}
    if "train" not in tables:
        raise DataError(f"{where}: has no rows to train on")
    for table in tables.values():
        _validate(table, where)
    roles = infer_roles(tables["train"], config.columns, where)
    if roles.split is not None and list(tables) == ["train"]:
        if isinstance(base, dict):
            base = base["train"]
        tables, unused = _split_by_column(tables["train"], roles.split, where)
        notes = (*notes, *unused)
    bases = base if isinstance(base, dict) else dict.fromkeys(tables, base)
    single = all(has_one_label_each(table, roles.label) for table in tables.values())
    read = {
        split: _read_split(table, roles, f"{where} ({split})", bases[split], single=single)
        for split, table in tables.items()
    }
    if read["train"] is None:
        raise DataError(f"{where} (train): every label is -1, which means none; choose a column with classes")
    splits = {split: images for split, images in read.items() if images is not None}
    withheld = tuple(
        f"{where}: the {split} split has no labels: it is not used" for split in read.keys() - splits.keys()
    )
    return {**splits, "train": splits["train"].with_notes((*notes, *withheld))}


def _validate(table: datasets.Dataset, where: str) -> None:
    """That texts are UTF-8 and offsets lead to data. Images themselves are not read."""
    try:
        table.data.table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where}: damaged: {first_line(error)}") from None


def _split_by_column(
    table: datasets.Dataset, column: str, where: str
) -> tuple[dict[str, datasets.Dataset], tuple[str, ...]]:
    values = np.array([text_of(value) for value in table.select_columns([column])[:][column]], dtype=object)
    parts = [(str(name), table.select(np.flatnonzero(values == name))) for name in dict.fromkeys(values)]
    if len(parts) == 1 and parts[0][0] != "train":
        raise DataError(f"{where}: column {column!r} says {parts[0][0]!r} in every row; none says train")
    where = f"{where}: column {column!r}"
    splits, unused = by_canonical_split(parts, where)
    return splits, describe_unused(unused, where)


def _read_split(
    table: datasets.Dataset, roles: ColumnRoles, where: str, base: Path | None, *, single: bool
) -> LabeledImages | None:
    """None for a split without labels: many test sets on the hub withhold them."""
    needed = [roles.image, *(roles.label if isinstance(roles.label, list) else [roles.label])]
    if missing := [name for name in needed if name not in table.column_names]:
        raise DataError(f"{where}: has no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    labels = read_labels(table, roles.label, where, single=single)
    return None if labels is None else LabeledImages(_read_images(table, roles.image, base, where), *labels, where)


def _read_images(table: datasets.Dataset, column: str, base: Path | None, where: str) -> Images:
    whole, table, feature = table, table.select_columns([column]), table.features[column]
    if getattr(feature, "dtype", "") in ("string", "large_string"):
        paths = table[:][column]
        if empty := [i for i, path in enumerate(paths) if not text_of(path)]:
            first = row_of(whole, empty[0])
            raise DataError(f"{where}: column {column!r} is empty in {len(empty)} rows, the first is {first}")
        paths = [text_of(path) for path in paths]
        if urls := [path for path in paths if re.match(r"[A-Za-z][\w+.-]+://", path)]:
            raise DataError(
                f"{where}: column {column!r} has URLs, such as {urls[0]}; download the images, and give paths"
            )
        return [local_path(base, path) for path in paths]
    try:
        return EncodedImages(table.cast_column(column, datasets.Image(decode=False)), column, base)
    except Exception as error:  # pyarrow and datasets raise many types
        raise DataError(f"{where}: column {column!r} holds no images: {first_line(error)}") from None
