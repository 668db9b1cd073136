"""The training loop: dispatch a step, fetch the next batches meanwhile, look at the device now and then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from finetune.training.state import TrainState
from finetune.training.step import TrainStep

AHEAD = 2  # batches on the device besides the one in use


@dataclass(frozen=True)
class Log:
    """Means over the steps since the last log: loss in nats, accuracy in [0, 1], gradient norms by partition (before
    clipping), and the rate."""

    step: int
    loss: float
    accuracy: float
    grad_norm: dict[str, float]
    images_per_second: float


def fit(
    train_step: TrainStep,
    state: TrainState,
    frozen: Any,
    batches: Any,
    *,
    total_steps: int,
    log_every: int,
    pause_every: int,
    on_log: Callable[[Log], None],
    on_pause: Callable[[TrainState, dict[str, Any]], None],
    stopping: Callable[[], bool],
    on_first: Callable[[Any], None] | None = None,
) -> TrainState:
    """Trains from ``state.step`` to ``total_steps``, or until ``stopping()``.

    The host reads the device at logs and pauses alone; in between, steps queue up behind each other.

    Args:
        frozen: variables that do not change.
        batches: endless iterator with ``get_state``.
        on_log: called every ``log_every`` steps and at the end.
        on_pause: called with the state and the loader's position every ``pause_every`` steps, at the end, and when
            stopping; the place to evaluate and to save. It must not keep the state's arrays, which the next step
            donates.
        on_first: called with the first batch.
    """
    step = int(state.step)
    ahead = Prefetcher(batches, total_steps - step)
    sums, since = None, time.perf_counter()
    while step < total_steps:
        batch, position = ahead.take()
        if on_first is not None:
            on_first(batch)
            on_first = None
        state, metrics = train_step(state, frozen, batch)
        step += 1
        sums = metrics if sums is None else _add(sums, metrics)
        stop = stopping()
        end = step == total_steps or stop
        if not end:
            ahead.fill()  # while the device computes
        if step % log_every == 0 or end:
            totals = jax.tree.map(float, jax.device_get(sums))
            count, now = totals["count"], time.perf_counter()
            norms = {name: norm / totals["steps"] for name, norm in totals["grad_norm"].items()}
            on_log(Log(step, totals["loss"] / count, totals["correct"] / count, norms, count / (now - since)))
            sums, since = None, now
        if step % pause_every == 0 or end:
            before = time.perf_counter()
            on_pause(state, position)
            since += time.perf_counter() - before  # the rate is that of training alone
        if stop:
            break
    return state


class Prefetcher:
    """Batches on their way to the device before they are needed, each with the loader's position behind it."""

    def __init__(self, batches: Any, count: int) -> None:
        """``count``: how many will be needed; no more are fetched."""
        self._batches, self._left = batches, count
        self._queue: deque[tuple[Any, dict[str, Any]]] = deque()
        self.fill()

    def fill(self) -> None:
        while self._left and len(self._queue) < AHEAD:
            batch = jax.device_put(next(self._batches))
            self._queue.append((batch, self._batches.get_state()))
            self._left -= 1

    def take(self) -> tuple[Any, dict[str, Any]]:
        return self._queue.popleft()


@jax.jit
def _add(sums: Any, metrics: Any) -> Any:
    """One dispatch for all of them."""
    return jax.tree.map(lambda a, b: a + b, sums, metrics)
