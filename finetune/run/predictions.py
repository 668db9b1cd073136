"""``predictions.parquet``: what each step of a run says of each test image.

Columns: ``path`` (or position) of the image, ``label`` (index of the class, or 0 and 1 for each where images have
several), and of each step ``logits.NAME`` and ``probabilities.NAME``, lists of float32 in the order of the classes.
The file's metadata has a digest of each, which is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.labeled_images import Split
from finetune.evaluation.verdict import probabilities
from finetune.files import written_atomically
from finetune.trees import hash_array

_DIGEST = "sha256."  # before a column's name, in the file's metadata


@dataclass(frozen=True)
class StepPredictions:
    """What one step says of the test images.

    Attributes:
        names: n paths or positions.
        labels: int [n], or 0 and 1 of shape [n, num_classes].
        logits: float32 [n, num_classes].
    """

    names: list[str]
    labels: np.ndarray
    logits: np.ndarray


def read_predictions(file: Path, step: str) -> StepPredictions | None:
    """Of a step of a finished run; None where the file does not have them."""
    columns = _read(file, "path", "label", f"logits.{step}")
    if columns is None:
        return None
    names, labels, logits = columns
    return StepPredictions(names.to_pylist(), _rows(labels), _rows(logits).astype(np.float32))


class Predictions:
    """The file, as far as it is written."""

    def __init__(self, file: Path, test: Split) -> None:
        self._file, self._test = file, test

    def logits(self, name: str) -> np.ndarray | None:
        """Of a step, float32 [n, num_classes]; None where the file does not have them."""
        columns = _read(self._file, f"logits.{name}")
        if columns is None or len(columns[0]) != len(self._test):
            return None
        return _rows(columns[0]).astype(np.float32)

    def copy(self, name: str, to: str, earlier: Collection[str]) -> None:
        """A step's under another name too, beside those of ``earlier`` ones, where the file has it."""
        logits = self.logits(name)
        if logits is not None:
            self.add(to, logits, earlier)

    def add(self, name: str, logits: np.ndarray, earlier: Collection[str]) -> None:
        """Adds a step's; keeps those of the ``earlier`` ones, and no others."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        kept = {step: self.logits(step) for step in earlier if step != name}
        labels = self._test.labels
        names = [self._test.name(i) for i in range(len(labels))]
        columns: dict[str, Any] = {
            "path": [name.encode(errors="backslashreplace").decode() for name in names],  # some are not UTF-8
            "label": _array(labels),
        }
        for step, values in {**kept, name: logits}.items():
            if values is not None:
                columns[f"logits.{step}"] = _array(values)
                columns[f"probabilities.{step}"] = _array(probabilities(values, labels).astype(np.float32))
        table = pa.table(columns)
        digests = {f"{_DIGEST}{column}": _hash(table[column].combine_chunks()) for column in table.column_names}
        with written_atomically(self._file) as file:
            pq.write_table(table.replace_schema_metadata(digests), file, compression="zstd")


def _read(file: Path, *columns: str) -> list[Any] | None:
    """Arrow arrays of columns; None where the file does not have one, or not as it was written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=list(columns))
        arrays = [table[column].combine_chunks() for column in columns]
        digests = [(table.schema.metadata or {}).get(f"{_DIGEST}{column}".encode()) for column in columns]
        whole = all(_hash(array).encode() == digest for array, digest in zip(arrays, digests, strict=True))
    except (OSError, pa.ArrowException, KeyError, IndexError, ValueError):
        return None
    return arrays if whole else None


def _hash(array: Any) -> str:
    """SHA-256 over the values of a column."""
    if _is_text(array):
        return hashlib.sha256(json.dumps(array.to_pylist()).encode()).hexdigest()
    return hash_array(_rows(array))


def _is_text(array: Any) -> bool:
    import pyarrow as pa

    return not pa.types.is_nested(array.type) and not pa.types.is_primitive(array.type)


def _rows(column: Any) -> np.ndarray:
    """[n], or [n, length] of a column of lists."""
    import pyarrow as pa

    if not pa.types.is_nested(column.type):
        return np.asarray(column)
    return np.asarray(column.flatten()).reshape(len(column), -1)


def _array(values: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.array(values) if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
