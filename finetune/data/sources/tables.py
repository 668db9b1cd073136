"""Tables of images and labels: CSV, Parquet, and every dataset of the ``datasets`` library."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from finetune.data.labeled_images import EncodedImages, Images, LabeledImages, local_path
from finetune.data.sources.columns import TEXT, ColumnRoles, infer_roles
from finetune.data.sources.csv_text import read_text_table
from finetune.data.sources.file_tree import read_tree
from finetune.data.sources.parquet import check_agreement, check_parquet, files_by_split, unreadable
from finetune.data.sources.split_names import by_canonical_split, canonical_split, describe_unused
from finetune.data.sources.table_labels import Lists, kind_of_lists, read_labels
from finetune.data.sources.table_rows import LINE, rows_of, text_of
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


def read_parquet(
    path: Path, files: list[Path], config: DataConfig, *, verify: bool = False
) -> dict[str, LabeledImages]:
    """A file, or the files of a folder, whose names, or whose folders' names, say their split.

    Paths of images are relative to the folder of their split's files; where there are several, to ``path``. ``verify``
    reads the files again, whatever is cached of them.
    """
    rows = {file: check_parquet(file) for file in files}
    empty = [f"{file}: has no rows" for file in files if not rows[file]]
    files = [file for file in files if rows[file]]
    if not files:
        raise DataError(f"{path}: has no rows to train on")
    splits = {"train": files} if path.is_file() else files_by_split(files, path)
    for group in splits.values():
        check_agreement(group)
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
    read = _read_splits(tables, config, str(path), bases)
    unused = _unused_beside(path, list(rows), read) if path.is_dir() else []
    return {**read, "train": read["train"].with_left_out([*empty, *unused])}


def _unused_beside(folder: Path, tables: list[Path], read: dict[str, LabeledImages]) -> list[str]:
    """A line for each file in a folder of Parquet files that is neither one of them nor an image that they name."""
    used: set[str] = set()
    for split in read.values():
        paths = split.images.paths if isinstance(split.images, EncodedImages) else split.images
        used |= {os.path.abspath(paths[i]) for i in range(len(paths))}
    tree, known = read_tree(folder), {f"{file}: not an image" for file in tables}
    unused = [path for path in tree.all_images if os.path.abspath(path) not in used]
    return [f"{path}: in none of the tables" for path in unused] + [
        line for line in tree.all_left_out if line not in known
    ]


def _cache_of(files: list[Path], verify: bool) -> Path:
    """A folder for the tables that ``datasets`` makes of these files; for itself it would look at their times alone."""
    states = "\n".join(f"{file.absolute()} {file_state(file)}" for file in files)
    name = hashlib.sha256(states.encode(errors="surrogateescape")).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "finetune" / name
    if verify:
        shutil.rmtree(folder, ignore_errors=True)
    return folder


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
    if roles.split is not None:
        if list(tables) == ["train"]:
            base = base["train"] if isinstance(base, dict) else base
            tables, more = _split_by_column(tables["train"], roles.split, where)
        elif config.columns.split is not None:
            raise DataError(
                f"data.columns.split: has no effect, as {where} has splits of its own: {', '.join(tables)}; leave it "
                f"out; received {config.columns.split!r}"
            )
        else:
            more = _contradictions(tables, roles.split, where)
        notes = (*notes, *more)
    bases = base if isinstance(base, dict) else dict.fromkeys(tables, base)
    lists = kind_of_lists(tables.values(), roles.label)
    read = {
        split: _read_split(table, roles, f"{where} ({split})", bases[split], lists) for split, table in tables.items()
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


def _contradictions(tables: dict[str, datasets.Dataset], column: str, where: str) -> tuple[str, ...]:
    """A line for each split whose rows a column calls otherwise."""
    lines = []
    for split, table in tables.items():
        values = table.select_columns([column])[:][column] if column in table.column_names else []
        if others := [i for i, value in enumerate(values) if canonical_split(text_of(value)) != split]:
            lines.append(
                f"{where} ({split}): column {column!r} is not used, as there are splits already; it says another one "
                f"in {rows_of(table, others)}: {text_of(values[others[0]])!r}"
            )
    return tuple(lines)


def _split_by_column(
    table: datasets.Dataset, column: str, where: str
) -> tuple[dict[str, datasets.Dataset], tuple[str, ...]]:
    values = np.array([text_of(value) for value in table.select_columns([column])[:][column]], dtype=object)
    rows = {str(name): np.flatnonzero(values == name) for name in dict.fromkeys(values)}
    if len(rows) == 1 and canonical_split(*rows) != "train":
        raise DataError(f"{where}: column {column!r} says {next(iter(rows))!r} in every row; none says train")
    where = f"{where}: column {column!r}"
    splits, unused = by_canonical_split([(name, table.select(chosen)) for name, chosen in rows.items()], where)
    notes = [f"{where}: {name!r} is no split: not used: {rows_of(table, rows[name])}" for name in unused]
    return splits, tuple(notes)


def _read_split(
    table: datasets.Dataset, roles: ColumnRoles, where: str, base: Path | None, lists: Lists
) -> LabeledImages | None:
    """None for a split without labels: many test sets on the hub withhold them."""
    needed = [roles.image, *(roles.label if isinstance(roles.label, list) else [roles.label])]
    if missing := [name for name in needed if name not in table.column_names]:
        raise DataError(f"{where}: has no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    labels = read_labels(table, roles.label, where, lists)
    if labels is None:
        return None
    images = _read_images(table, roles.image, base, where)
    return LabeledImages(images, *labels, where, from_sets=lists == "one class")


def _read_images(table: datasets.Dataset, column: str, base: Path | None, where: str) -> Images:
    whole, table, feature = table, table.select_columns([column]), table.features[column]
    if getattr(feature, "dtype", "") in TEXT:
        paths = table[:][column]
        if empty := [i for i, path in enumerate(paths) if not text_of(path)]:
            raise DataError(
                f"{where}: column {column!r} is empty in {rows_of(whole, empty)}; name an image or remove them"
            )
        paths = [text_of(path) for path in paths]
        if urls := [path for path in paths if re.match(r"[A-Za-z][\w+.-]+://", path)]:
            raise DataError(
                f"{where}: column {column!r} has URLs, such as {urls[0]}; download the images, and give paths"
            )
        return [local_path(base, path) for path in paths]
    try:
        if getattr(feature, "dtype", "") == "binary_view":
            table = table.cast_column(column, datasets.Value("binary"))
        return EncodedImages(table.cast_column(column, datasets.Image(decode=False)), column, base)
    except Exception as error:  # pyarrow and datasets raise many types
        raise DataError(f"{where}: column {column!r} holds no images: {first_line(error)}") from None
