"""Finished runs on the same test images: paired tests of the models that they kept, and where these differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import CheckpointError
from finetune.evaluation.per_class import class_results
from finetune.evaluation.statistics import PairedTest, compare_paired
from finetune.evaluation.verdict import is_right, predicted
from finetune.folder.run_folder import RunFolder
from finetune.run.predictions import StepPredictions, read_predictions


@dataclass(frozen=True)
class PairedRuns:
    """Two runs, by their numbers.

    Attributes:
        problem: why they do not compare; None where they do.
        test: what the second run gained and lost against the first; None where they do not compare.
        images: number of test images.
        adjusted: the p-value, adjusted for the number of tests (Holm 1979).
    """

    first: int
    second: int
    problem: str | None
    test: PairedTest | None = None
    images: int = 0
    adjusted: float | None = None

    @property
    def points(self) -> float:
        """Of accuracy that the second run is above the first."""
        assert self.test is not None
        return 100 * (self.test.gained - self.test.lost) / self.images


class KeptPredictions:
    """What the kept models of finished runs say of their test images; None where a run has lost it."""

    def __init__(self, directories: Sequence[str | Path]) -> None:
        """
        Raises:
            CheckpointError: a folder holds no finished run.
        """
        self.runs: list[StepPredictions | None] = []
        self.class_names: list[tuple[str, ...]] = []
        for folder in map(RunFolder, directories):
            summary = folder.summary()
            if summary is None:
                raise CheckpointError(f"{folder.directory}: not a finished run")
            self.runs.append(read_predictions(folder.predictions, summary["kept"]["stage"]))
            self.class_names.append(folder.class_names())

    def problem(self, first: int, second: int) -> str | None:
        """Why two runs do not compare; None where they do."""
        one, other = self.runs[first], self.runs[second]
        if one is None or other is None:
            return "no predictions of the kept step"
        if self.class_names[first] != self.class_names[second]:
            return "other classes"
        if one.names != other.names:
            return "other test images"
        return None if np.array_equal(one.labels, other.labels) else "other labels of the test images"

    def right(self, run: int) -> np.ndarray:
        """bool [n]: the images that a run is right about; where they have several labels, about all of them."""
        predictions = self.runs[run]
        assert predictions is not None
        return is_right(predicted(predictions.logits, predictions.labels), predictions.labels)

    def paired(self) -> list[PairedRuns]:
        """McNemar's exact test of each pair of runs."""
        pairs = []
        for first, second in combinations(range(len(self.runs)), 2):
            if problem := self.problem(first, second):
                pairs.append(PairedRuns(first, second, problem))
            else:
                right = self.right(first), self.right(second)
                pairs.append(PairedRuns(first, second, None, compare_paired(*right), len(right[0])))
        return _adjusted(pairs)

    def by_class(self) -> tuple[list[int], list[dict[str, Any]]]:
        """The runs that have the test images of the first one, and a record for each class: its ``name``, number of
        test ``images``, the ``values`` of these runs (recall, or average precision where images have several labels;
        None without images) and their ``spread``; the largest spread first. Nothing where no two runs compare."""
        same = [0, *(run for run in range(1, len(self.runs)) if self.problem(0, run) is None)]
        if len(same) < 2:
            return [], []
        columns = []
        for run in same:
            predictions = self.runs[run]
            assert predictions is not None
            answers = predicted(predictions.logits, predictions.labels)
            columns.append(class_results(answers, predictions.labels, predictions.logits))
        records = []
        for name, results in zip(self.class_names[0], zip(*columns, strict=True), strict=True):
            values = [each.recall if each.average_precision is None else each.average_precision for each in results]
            known = [value for value in values if value is not None]
            spread = max(known) - min(known) if known else None
            records.append({"name": name, "images": results[0].images, "values": values, "spread": spread})
        return same, sorted(records, key=lambda record: -(record["spread"] or 0.0))


def _adjusted(pairs: Sequence[PairedRuns]) -> list[PairedRuns]:
    """With p-values that hold for all tests together (Holm 1979)."""
    tests = sorted((pair for pair in pairs if pair.test), key=lambda pair: pair.test.p_value if pair.test else 1.0)
    adjusted, highest = {}, 0.0
    for rank, pair in enumerate(tests):
        assert pair.test is not None
        highest = max(highest, min(1.0, (len(tests) - rank) * pair.test.p_value))
        adjusted[pair.first, pair.second] = highest
    return [replace(pair, adjusted=adjusted.get((pair.first, pair.second))) for pair in pairs]
