"""Exact metrics of a classifier over a split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from finetune.data.image_spec import ImageSpec
from finetune.data.loader import evaluation_batches
from finetune.data.splits import Split
from finetune.evaluation.steps import EvalStep


@dataclass(frozen=True)
class Evaluation:
    """n images; accuracy in [0, 1]; mean cross-entropy in nats."""

    n: int
    accuracy: float
    loss: float


def evaluate(eval_step: EvalStep, variables: Any, split: Split, spec: ImageSpec, batch_size: int) -> Evaluation:
    """Every image of the split counts once; the device is read once, at the end."""
    variables = jax.device_put(variables)  # what is held on the host crosses once, not with every batch
    sums: Any = None
    for batch in evaluation_batches(split, spec, batch_size):
        metrics, _ = eval_step(variables, jax.device_put(batch))
        sums = metrics if sums is None else jax.tree.map(lambda a, b: a + b, sums, metrics)
    totals = {name: float(value) for name, value in sums.items()}
    return Evaluation(round(totals["count"]), totals["correct"] / totals["count"], totals["loss"] / totals["count"])
