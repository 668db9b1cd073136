"""The training loop: dispatch a step, fetch the next batch meanwhile, look at the device now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from finetune.training.state import TrainState
from finetune.training.step import TrainStep


@dataclass(frozen=True)
class Log:
    """Means over the steps since the last log: loss in nats, accuracy in [0, 1], gradient norms by partition (before
    clipping), and the rate."""

    step: int
    loss: float
    accuracy: float
    gradient_norm: dict[str, float]
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
    """
    step = int(state.step)
    batch = jax.device_put(next(batches)) if step < total_steps else None
    sums, since = None, time.perf_counter()
    while step < total_steps:
        state, metrics = train_step(state, frozen, batch)
        step += 1
        sums = metrics if sums is None else _add(sums, metrics)
        stop = stopping()
        end = step == total_steps or stop
        pause = step % pause_every == 0 or end
        position = batches.get_state() if pause else None
        if not end:
            batch = jax.device_put(next(batches))  # while the device computes
        if step % log_every == 0 or end:
            totals = jax.tree.map(float, jax.device_get(sums))
            count, now = totals["count"], time.perf_counter()
            norms = {name: norm / totals["steps"] for name, norm in totals["gradient_norm"].items()}
            on_log(Log(step, totals["loss"] / count, totals["correct"] / count, norms, count / (now - since)))
            sums, since = None, now
        if position is not None:
            before = time.perf_counter()
            on_pause(state, position)
            since += time.perf_counter() - before  # the rate is that of training alone
        if stop:
            break
    return state


@jax.jit
def _add(sums: Any, metrics: Any) -> Any:
    """One dispatch for all of them."""
    return jax.tree.map(lambda a, b: a + b, sums, metrics)
