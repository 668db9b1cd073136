"""What a Parquet file says of itself, checked before it is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.sources.labels import declared_names
from finetune.errors import DataError, first_line
from finetune.files import open_regular

_ROWS = 1_000_000, 8  # rows, and rows for each byte, from which on together no image can be behind them
_BOMB = 1 << 28, 200  # bytes, and bytes for each in the file, from which on together it is one


def check_parquet(file: Path) -> None:
    """
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
