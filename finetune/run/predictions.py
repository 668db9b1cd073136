"""``predictions.parquet``: what each step of a run says of each test image.

Columns: ``path`` (or position) of the image, ``label`` (index of the class, or 0 and 1 for each where images have
several), and of each step ``logits.NAME`` and ``probabilities.NAME``, lists of float32 in the order of the classes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.labeled_images import Split
from finetune.evaluation.verdict import probabilities
from finetune.files import written_atomically


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
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=["path", "label", f"logits.{step}"])
        return StepPredictions(table[0].to_pylist(), _rows(table[1]), _rows(table[2]).astype(np.float32))
    except (OSError, pa.ArrowException, KeyError, IndexError, ValueError):
        return None


class Predictions:
    """The file, as far as it is written."""

    def __init__(self, file: Path, test: Split) -> None:
        self._file, self._test = file, test

    def logits(self, name: str) -> np.ndarray | None:
        """Of a step, float32 [n, num_classes]; None where the file does not have them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            values = _rows(pq.read_table(self._file, columns=[f"logits.{name}"])[0]).astype(np.float32)
        except (OSError, pa.ArrowException, KeyError, IndexError, ValueError):
            return None
        return values if len(values) == len(self._test) else None

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
        with written_atomically(self._file) as file:
            pq.write_table(pa.table(columns), file, compression="zstd")


def _rows(column: Any) -> np.ndarray:
    """[n], or [n, length] of a column of lists."""
    import pyarrow as pa

    column = column.combine_chunks()
    if not pa.types.is_nested(column.type):
        return np.asarray(column)
    return np.asarray(column.flatten()).reshape(len(column), -1)


def _array(values: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.array(values) if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
