"""Exact metrics of a classifier over a split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from finetune.data.labeled_images import Split
from finetune.data.loader import evaluation_batches
from finetune.evaluation.steps import EvalStep
from finetune.images.spec import ImageSpec


@dataclass(frozen=True)
class Evaluation:
    """A model over a split.

    Attributes:
        n: images.
        accuracy: in [0, 1]; of images with many labels, the share whose set of classes is exactly right.
        loss: mean cross-entropy in nats.
        mean_average_precision: over the classes, in [0, 1]; for images with many labels alone.
    """

    n: int
    accuracy: float
    loss: float
    mean_average_precision: float | None = None

    @property
    def metric(self) -> str:
        """Name of the metric by which models are compared."""
        return "accuracy" if self.mean_average_precision is None else "mean_average_precision"

    @property
    def score(self) -> float:
        """By which models are compared."""
        return self.accuracy if self.mean_average_precision is None else self.mean_average_precision

    def to_json(self) -> dict[str, Any]:
        """The metrics, and under ``metric`` the name of the one that decides between models."""
        return {**{name: value for name, value in vars(self).items() if value is not None}, "metric": self.metric}


def evaluate(eval_step: EvalStep, variables: Any, split: Split, spec: ImageSpec, batch_size: int) -> Evaluation:
    """Every image of the split counts once; the device is read once, at the end."""
    variables = jax.device_put(variables)  # what is held on the host crosses once, not with every batch
    sums: Any = None
    rows = []
    for batch in evaluation_batches(split, spec, batch_size):
        metrics, logits = eval_step(variables, jax.device_put(batch))
        sums = metrics if sums is None else jax.tree.map(lambda a, b: a + b, sums, metrics)
        if split.multi_label:
            rows.append(logits)
    totals = {name: float(value) for name, value in sums.items()}
    count = totals["count"]
    precision = None
    if split.multi_label:
        precision = _mean_average_precision(split.labels, np.concatenate(jax.device_get(rows))[: len(split)])
    return Evaluation(round(count), totals["correct"] / count, totals["loss"] / count, precision)


def _mean_average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Over the classes that some image has."""
    from sklearn.metrics import average_precision_score

    shown = labels.any(0)
    return float(average_precision_score(labels[:, shown], scores[:, shown], average="macro"))
