"""The training loop, as a generator of events: it trains, and the caller evaluates, saves and reports."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import optax

from finetune.training.stage_trainer import StageTrainer
from finetune.training.state import TrainState
from finetune.training.step import Batch, Metrics

AHEAD = 2  # batches on the device besides the one in use


class Batches(Protocol):
    """An endless iterator of batches on the host, whose position goes through a checkpoint."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class FirstBatch:
    """The batch that the next step takes, on the device."""

    batch: Batch


@dataclass(frozen=True)
class Logged:
    """Means over the steps since the last log: loss in nats, accuracy in [0, 1], gradient norms by partition (before
    clipping), and images per second of training alone.

    ``steps`` is their number; in ``not_finite`` of them the loss or a gradient was not finite.
    """

    step: int
    steps: int
    not_finite: int
    loss: float
    accuracy: float
    grad_norm: dict[str, float]
    images_per_second: float


@dataclass(frozen=True)
class Evaluate:
    """An epoch, or the stage, has ended: the time to evaluate. ``loader`` is as in :class:`Checkpoint`."""

    step: int
    state: TrainState
    loader: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """An epoch has ended before the stage has, a save is due, or the loop was asked to stop: the time to save.

    ``loader`` is the loader's position behind the last batch that was trained on.
    """

    step: int
    state: TrainState
    loader: dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """The last event: the stage's end, or the step at which the loop was asked to stop."""

    step: int
    state: TrainState


Event = FirstBatch | Logged | Evaluate | Checkpoint | Finished


def fit(
    trainer: StageTrainer,
    state: TrainState,
    batches: Batches,
    *,
    log_every: int,
    should_stop: Callable[[], bool] = lambda: False,
    should_save: Callable[[int], bool] = lambda step: False,
    evaluate_first: bool = False,
) -> Iterator[Event]:
    """Trains from ``state.step`` to the end of the stage, or until ``should_stop()`` after a step.

    Args:
        log_every: steps.
        should_save: is asked after each step, with its number, whether to save within an epoch.
        evaluate_first: an epoch has ended at ``state.step``, and is not evaluated yet.

    The host reads the device at events alone; in between, steps queue up behind each other. An event's state is valid
    until the loop goes on: the next step donates its arrays.
    """
    step, total = int(state.step), trainer.length.total_steps
    epoch = trainer.length.steps_per_epoch or total
    stop = False
    if evaluate_first:
        yield Evaluate(step, state, batches.get_state())
        if step < total:
            yield Checkpoint(step, state, batches.get_state())
    prefetched, meter = Prefetcher(batches, total - step, trainer.placement.put_batch), _Meter()
    if step < total:
        with meter.paused():
            yield FirstBatch(prefetched.next_batch)
    while step < total and not stop:
        batch, loader = prefetched.take()
        state, metrics = trainer.step(state, trainer.frozen, batch)
        step += 1
        meter.add(metrics)
        stop = should_stop()
        if step < total and not stop:
            prefetched.fill()  # while the device computes
        epoch_ended = step % epoch == 0 or step == total
        save = stop or should_save(step)
        if step % log_every == 0 or epoch_ended or save:
            yield meter.read(step)
        with meter.paused():
            if epoch_ended:
                yield Evaluate(step, state, loader)
            if step < total and (epoch_ended or save):
                yield Checkpoint(step, state, loader)
    yield Finished(step, state)


class Prefetcher:
    """Batches on their way to the device before they are needed, each with the loader's position behind it."""

    def __init__(self, batches: Batches, count: int, put: Callable[[Batch], Batch] = jax.device_put) -> None:
        """
        Args:
            count: how many will be needed; no more are fetched.
            put: brings one to the devices.
        """
        self._batches, self._left, self._put = batches, count, put
        self._queue: deque[tuple[Batch, dict[str, Any]]] = deque()
        self.fill()

    @property
    def next_batch(self) -> Batch:
        return self._queue[0][0]

    def fill(self) -> None:
        while self._left and len(self._queue) < AHEAD:
            batch = self._put(next(self._batches))
            self._queue.append((batch, self._batches.get_state()))
            self._left -= 1

    def take(self) -> tuple[Batch, dict[str, Any]]:
        return self._queue.popleft()


class _Meter:
    """Sums of a step's metrics since the last log, and the time that training took."""

    def __init__(self) -> None:
        self._sums: Metrics | None = None
        self._since = time.perf_counter()

    def add(self, metrics: Metrics) -> None:
        self._sums = metrics if self._sums is None else _add(self._sums, metrics)

    def read(self, step: int) -> Logged:
        """Waits for the device."""
        sums = jax.tree.map(float, jax.device_get(self._sums))
        count, now = sums["count"], time.perf_counter()
        norms = {name: norm / sums["steps"] for name, norm in sums["grad_norm"].items()}
        steps, not_finite = int(sums["steps"]), int(sums["not_finite"])
        loss, accuracy, speed = sums["loss"] / count, sums["correct"] / count, count / (now - self._since)
        self._sums, self._since = None, now
        return Logged(step, steps, not_finite, loss, accuracy, norms, speed)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not training."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before


_add = jax.jit(optax.tree.add)  # one dispatch for all of them
