"""Exact metrics of a classifier over a split."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from finetune.data.labeled_images import Split
from finetune.data.loader import evaluation_batches
from finetune.distributed.sharding import Placement, on_one_device
from finetune.errors import DataError
from finetune.evaluation.steps import EvalStep
from finetune.images.spec import ImageSpec
from finetune.tracking import Track, untracked


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a model over a split.

    Attributes:
        n: number of images.
        accuracy: in [0, 1]; for images with several labels, the share whose set of classes is exactly right.
        loss: mean cross-entropy in nats; for images with several labels its binary form, the mean over the classes.
        mean_average_precision: the mean over the classes that some image has, in [0, 1]; None unless images have
            several labels.
        logits: float32 [n, num_classes], where they were asked for.
    """

    n: int
    accuracy: float
    loss: float
    mean_average_precision: float | None = None
    logits: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def metric(self) -> str:
        """Name of the metric that decides between models: ``accuracy`` or ``mean_average_precision``."""
        return "accuracy" if self.mean_average_precision is None else "mean_average_precision"

    def value(self, metric: str | None = None) -> float:
        """A metric's value, by default that of the deciding one."""
        return float(getattr(self, metric or self.metric))

    def score(self, metric: str | None = None) -> float:
        """A metric as a number in [0, 1], where higher is better: a loss as 1 / (1 + loss), and 0 for NaN."""
        return score_of_value(metric or self.metric, self.value(metric))

    def to_json(self) -> dict[str, Any]:
        """The metrics by name, without those that are None, and under ``metric`` the name of the deciding one."""
        values = {name: value for name, value in vars(self).items() if name != "logits" and value is not None}
        return {**values, "metric": self.metric}


def score_of_value(metric: str, value: float) -> float:
    """The :meth:`Evaluation.score` of a metric's value."""
    score = 1.0 / (1.0 + value) if metric == "loss" else value
    return score if math.isfinite(score) else 0.0


def value_of_score(metric: str, score: float) -> float:
    """The value of a metric that has a :meth:`Evaluation.score`."""
    if metric == "loss":
        return 1.0 / score - 1.0 if score else math.inf
    return score


def evaluate(
    eval_step: EvalStep,
    variables: Any,
    split: Split,
    spec: ImageSpec,
    batch_size: int,
    track: Track = untracked,
    name: str = "evaluation",
    keep_logits: bool = False,
    placement: Placement | None = None,
) -> Evaluation:
    """Exact metrics over a split: every image counts once, however the batches are padded.

    Args:
        eval_step: from :func:`make_eval_step`.
        variables: of the classifier, on the device or on the host.
        split: its labels are int [N], or 0 and 1 of shape [N, num_classes] where images have several labels.
        spec: the images that the model takes.
        batch_size: images in a step; no metric depends on it beyond rounding.
        track: shows how far it is, under ``name``.
        keep_logits: the evaluation has them.
        placement: of variables and batches, where there are several devices.

    Raises:
        DataError: images may have several labels, but none has any: average precision is undefined.
    """
    placement = placement or on_one_device()
    size = placement.round_up(min(batch_size, len(split)))
    batches = track(evaluation_batches(split, spec, size, share=placement.rows(size)), name, -(-len(split) // size))
    return evaluate_batches(eval_step, variables, batches, split.labels, keep_logits, placement)


def evaluate_batches(
    eval_step: EvalStep,
    variables: Any,
    batches: Iterable[dict[str, Any]],
    labels: np.ndarray,
    keep_logits: bool = False,
    placement: Placement | None = None,
) -> Evaluation:
    """The same over batches that are there already; ``labels`` are those of all, and errors as in :func:`evaluate`."""
    multi_label = labels.ndim == 2
    if multi_label and not labels.any():
        raise DataError(
            f"mean average precision is undefined: none of the {len(labels)} images has a label; "
            "give images with labels, or another share of them to this split"
        )
    placement = placement or on_one_device()
    variables = placement.put(variables)  # arrays on the host are copied once, not with every batch
    sums: Any = None  # read from the device once, after the last batch
    rows = []
    for batch in batches:
        metrics, logits = eval_step(variables, placement.put_batch(batch))
        sums = metrics if sums is None else jax.tree.map(lambda a, b: a + b, sums, metrics)
        if multi_label or keep_logits:
            rows.append(logits)
    totals = {name: float(value) for name, value in sums.items()}
    count = totals["count"]
    scores = np.concatenate(jax.device_get(rows))[: len(labels)] if rows else None
    precision = _mean_average_precision(labels, scores) if multi_label and scores is not None else None
    kept = scores if keep_logits else None
    return Evaluation(round(count), totals["correct"] / count, totals["loss"] / count, precision, kept)


def _mean_average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """The mean over the classes that some image has; labels and scores are [N, num_classes]."""
    return float(np.mean([value for value in average_precisions(labels, scores) if value is not None]))


def average_precisions(labels: np.ndarray, scores: np.ndarray) -> list[float | None]:
    """Average precision of each class; None for a class that no image has.

    Args:
        labels: 0 and 1, [N, num_classes].
        scores: of the same shape, such as logits.
    """
    from sklearn.metrics import average_precision_score

    scores = np.nan_to_num(scores, nan=float(np.finfo(np.float32).min))  # a model that has diverged ranks nothing
    return [
        float(average_precision_score(of_class, score)) if of_class.any() else None
        for of_class, score in zip(labels.T, scores.T, strict=True)
    ]
