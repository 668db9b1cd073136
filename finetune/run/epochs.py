"""What an epoch came to, in one line for the terminal and one record for the log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.evaluation.metrics import Evaluation
from finetune.training.loop import Logged


@dataclass(frozen=True)
class EpochReport:
    """One epoch of a stage.

    Attributes:
        epoch: such as ``3/10``.
        train_loss: the mean over the epoch, in nats.
        metric, validation: the metric that chooses, and its value; None without validation images.
        validation_loss: in nats; None without validation images.
        best: the best epoch of the stage so far.
        highest_learning_rate: of all partitions, at its end.
        images_per_second: of training alone.
        seconds: that it took, with validation and saving.
        seconds_left: until the stage ends, at this speed.
    """

    stage: str
    epoch: str
    train_loss: float
    metric: str
    validation: float | None
    validation_loss: float | None
    best: bool
    highest_learning_rate: float
    images_per_second: float
    seconds: float
    seconds_left: float

    def line(self) -> str:
        parts = [f"{self.stage}: epoch {self.epoch}", f"loss {self.train_loss:.4f}"]
        if self.validation is not None:
            parts.append(f"validation loss {self.validation_loss:.4f}")
            if self.metric != "loss":
                parts.append(f"{self.metric.replace('_', ' ')} {self.validation:.4f}")
            parts[-1] += " (best)" if self.best else ""
        parts += [f"rate {self.highest_learning_rate:.1e}", f"{self.images_per_second:,.0f} images/s"]
        return ", ".join([*parts, f"{self.seconds:.1f} s", f"{duration(self.seconds_left)} left"])

    def to_json(self) -> dict[str, Any]:
        """Without what the record has in other words: its stage and its epoch."""
        return {name: value for name, value in vars(self).items() if name not in ("stage", "epoch")}


class EpochMeter:
    """Collects what training logs during an epoch."""

    def __init__(self, stage: str, steps_per_epoch: int, total_steps: int) -> None:
        self._stage, self._epoch, self._total = stage, steps_per_epoch, total_steps
        self._rate = 0.0
        self.resume({})

    def add(self, log: Logged, learning_rate: float) -> None:
        self._steps += log.steps
        self._loss += log.loss * log.steps
        self._training += log.steps / log.images_per_second  # in batches; their size cancels out
        self._rate = learning_rate

    def sums(self) -> dict[str, float]:
        """Of the epoch under way."""
        seconds = time.perf_counter() - self._since
        return {"steps": self._steps, "loss": self._loss, "training": self._training, "seconds": seconds}

    def resume(self, sums: Mapping[str, float]) -> None:
        """Goes on from what :meth:`sums` gave; from nothing where it is empty."""
        self._steps, self._loss = int(sums.get("steps", 0)), sums.get("loss", 0.0)
        self._training = sums.get("training", 0.0)
        self._since = time.perf_counter() - sums.get("seconds", 0.0)

    def report(self, step: int, validation: Evaluation | None, metric: str, *, best: bool) -> EpochReport:
        """The epoch that ends at a step; the next one begins."""
        now = time.perf_counter()
        seconds = now - self._since
        steps = max(1, self._steps)
        report = EpochReport(
            self._stage,
            self.epochs_at(step),
            self._loss / steps,
            metric,
            None if validation is None else validation.value(metric),
            None if validation is None else validation.loss,
            best,
            self._rate,
            self._steps / self._training if self._training else 0.0,
            round(seconds, 3),
            round(seconds / steps * (self._total - step), 3),
        )
        self.resume({})
        return report

    def epochs_at(self, step: int) -> str:
        """``3/10``; with a decimal where an epoch is not complete."""
        done, all_of = step / self._epoch, self._total / self._epoch
        return f"{done:.3g}/{all_of:.3g}" if all_of % 1 or done % 1 else f"{int(done)}/{int(all_of)}"


def duration(seconds: float) -> str:
    """``0:05``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
