"""Parquet files: which a folder has, and what they say of themselves, checked before they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.data.sources.file_tree import is_hidden
from finetune.data.sources.labels import declared_names
from finetune.data.sources.split_names import canonical_split
from finetune.errors import DataError, first_line, listed
from finetune.files import open_regular
from finetune.images.formats import is_named_like_an_image

_ROWS = 1_000_000, 8  # rows, and rows for each byte, from which on together no image can be behind them
_BOMB = 1 << 28, 200  # bytes, and bytes for each in the file, from which on together it is one
_DEEPEST = 3  # folders from the source's own to that of a file


def parquet_files(folder: Path) -> list[Path]:
    """Those in a folder and in the folders inside, but for hidden ones and those beside images."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        depth = len(Path(parent).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not is_hidden(name) and depth < _DEEPEST)
        files = [name for name in names if name.lower().endswith(".parquet") and not is_hidden(name)]
        if files and not (depth and any(map(is_named_like_an_image, names))):
            found += [Path(parent, name) for name in files]
    return sorted(found)


def files_by_split(files: list[Path], folder: Path) -> dict[str, list[Path]]:
    """By what the files' names, or those of the folders around them, say; all are training data where none says one."""
    groups: dict[str | None, list[Path]] = {}
    for file in files:
        split = canonical_split(file.stem, loose=True)
        for parent in file.relative_to(folder).parents:
            split = split or canonical_split(parent.name, loose=True)
        groups.setdefault(split, []).append(file)
    if set(groups) == {None}:
        return {"train": files}
    if None in groups:
        name = groups[None][0]
        raise DataError(f"{name}: its name says no split, and other files' names do: call it train-{name.name}")
    if "train" not in groups:
        raise DataError(f"{folder}: has no training split; its splits: {', '.join(map(str, groups))}; name one train")
    return {str(split): group for split, group in groups.items()}


def check_agreement(files: Sequence[Path]) -> None:
    """
    Raises:
        DataError: they differ in their columns, or in the classes that they declare; or the order of these.
    """
    import datasets
    import pyarrow.parquet as pq

    features = {file: datasets.Features.from_arrow_schema(pq.read_schema(file)) for file in files}
    first = files[0]
    for file in files[1:]:
        if different := sorted(features[first].keys() ^ features[file].keys()):
            raise DataError(
                f"{file}: its columns are not those of {first.name}: only one of both has {listed(different)}"
            )
        for name, feature in features[first].items():
            here, there = _class_names(features[file][name]), _class_names(feature)
            if here != there:
                raise DataError(
                    f"{file}: column {name!r} declares {_describe(here)}, and that of {first.name} {_describe(there)}; "
                    "write both with the same classes in one order, or with their names in place of numbers"
                )


def _class_names(feature: Any) -> list[str] | None:
    """Of a column of classes or of lists of classes."""
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return list(names) if names is not None else None


def _describe(names: list[str] | None) -> str:
    return "no classes" if names is None else f"the classes {listed(names)}"


def check_parquet(file: Path) -> int:
    """The number of its rows.

    Raises:
        DataError: it is no Parquet file, says that a few bytes are a great many, or declares two classes of one name.
    """
    import pyarrow.parquet as pq

    try:
        with open_regular(file) as stream:
            metadata = pq.read_metadata(stream)
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            unpacked = sum(
                group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns)
            )
        declared = json.loads((metadata.metadata or {}).get(b"huggingface", b"{}"))
    except Exception as error:  # pyarrow and json raise many types
        raise unreadable(file, error) from None
    size = file.stat().st_size
    if metadata.num_rows > max(_ROWS[0], _ROWS[1] * size):
        raise DataError(f"{file}: says that its {size:,} bytes are {metadata.num_rows:,} rows; write it anew")
    if unpacked > max(_BOMB[0], _BOMB[1] * size):
        raise DataError(f"{file}: {unpacked / 1e6:,.0f} MB in {size / 1e6:,.1f} MB: too large to open safely")
    for names in _declared_classes(declared):
        declared_names(names, str(file))
    return int(metadata.num_rows)


def unreadable(path: Path, error: BaseException) -> DataError:
    cause = error.__cause__ or error
    return DataError(f"{path}: cannot be read as Parquet: {first_line(cause)}")


def _declared_classes(features: Any) -> Iterator[list[str]]:
    """The names of every ``ClassLabel`` that the ``datasets`` library wrote down, at any depth."""
    if isinstance(features, dict):
        names = features.get("names")
        if features.get("_type") == "ClassLabel" and isinstance(names, list):
            yield [str(name) for name in names]
        features = list(features.values())
    if isinstance(features, list):
        for feature in features:
            yield from _declared_classes(feature)
