"""Learning-rate schedules by name, over optax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from finetune.errors import PartitionError
from finetune.recipe import Length, Schedule


@dataclass(frozen=True)
class Clock:
    """How long a stage is, in optimizer steps; the other two translate epochs and examples."""

    total_steps: int
    steps_per_epoch: int | None = None
    batch_size: int | None = None

    def steps(self, length: Length) -> int:
        """Raises PartitionError for a unit that this clock cannot translate."""
        if length.steps is not None:
            return length.steps
        if length.percent is not None:
            return round(length.percent / 100 * self.total_steps)
        unit, per = ("epochs", self.steps_per_epoch) if length.epochs is not None else ("examples", self.batch_size)
        if per is None:
            needed = "steps_per_epoch" if unit == "epochs" else "batch_size"
            raise PartitionError(f"a duration in {unit} needs {needed}; pass it, or give the duration in steps")
        return round(length.epochs * per) if length.epochs is not None else -(-(length.examples or 0) // per)


def build_schedule(schedule: Schedule, peak: float, clock: Clock) -> optax.Schedule:
    """step -> learning rate.

    A warm-up rises from peak / warm-up steps, or from ``warmup_from`` times the peak, to the peak; the curve fills the
    rest of the stage and stays at its end from there on. ``warmup_from`` 0 with ``cosine`` is
    ``optax.warmup_cosine_decay_schedule``, and the schedule of Flax's guide.

    Raises:
        PartitionError: durations that do not fit into the stage.
    """
    warmup = clock.steps(schedule.warmup)
    if warmup and warmup >= clock.total_steps:
        raise PartitionError(
            f"schedule {schedule.name}: a warm-up of {warmup} steps in a stage of {clock.total_steps}; make it shorter"
        )
    curve = _CURVES[schedule.name](schedule, peak, clock, warmup)
    if warmup == 0 or schedule.name == "one_cycle":
        return curve
    if schedule.warmup_from is None:
        rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    else:
        rise = optax.linear_schedule(peak * schedule.warmup_from, peak, warmup)
    return optax.join_schedules([rise, curve], [warmup])


def _constant(schedule: Any, peak: float, clock: Clock, warmup: int) -> optax.Schedule:
    return optax.constant_schedule(peak)


def _cosine(schedule: Any, peak: float, clock: Clock, warmup: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, max(1, clock.total_steps - warmup), alpha=schedule.end)


def _linear(schedule: Any, peak: float, clock: Clock, warmup: int) -> optax.Schedule:
    return optax.linear_schedule(peak, peak * schedule.end, max(1, clock.total_steps - warmup))


def _step(schedule: Any, peak: float, clock: Clock, warmup: int) -> optax.Schedule:
    moments = [clock.steps(moment) for moment in schedule.at]
    if moments != sorted(set(moments)) or moments[0] <= warmup or moments[-1] >= clock.total_steps:
        raise PartitionError(
            f"schedule step: its moments have to rise, after the warm-up ({warmup}) and before the stage's end "
            f"({clock.total_steps}); received, in steps: {', '.join(map(str, moments))}"
        )
    return optax.piecewise_constant_schedule(peak, {moment - warmup: schedule.factor for moment in moments})


def _exponential(schedule: Any, peak: float, clock: Clock, warmup: int) -> optax.Schedule:
    every, rest = _every(schedule, clock), clock.total_steps - warmup
    last = rest // every if schedule.staircase else rest / every
    return optax.exponential_decay(
        peak, every, schedule.factor, staircase=schedule.staircase, end_value=peak * schedule.factor**last
    )


def _one_cycle(schedule: Any, peak: float, clock: Clock, warmup: int) -> optax.Schedule:
    """From the first step to the last one, both included; as in PyTorch, a share of the stage rises up to a moment
    that may lie between two steps."""
    share = schedule.warmup.percent
    rise = (warmup if share is None else share / 100 * clock.total_steps) - 1
    low, end = peak * schedule.start, peak * schedule.end
    up = optax.cosine_decay_schedule(low - peak, max(1, rise))  # a fall run backwards: from low to the peak
    down = optax.cosine_decay_schedule(peak - end, clock.total_steps - 1 - rise)
    return lambda step: jnp.where(step < rise, peak + up(step), end + down(step - rise))


def _reheat(schedule: Any, peak: float, clock: Clock, warmup: int) -> optax.Schedule:
    every, rest = _every(schedule, clock), clock.total_steps - warmup
    starts, lengths = [0], [every]
    while starts[-1] + lengths[-1] < rest:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(max(1, round(every * schedule.growth ** len(lengths))))
    peaks = peak * schedule.factor ** np.arange(len(starts))
    first, length, top = (jnp.asarray(values, jnp.float32) for values in (starts, lengths, peaks))

    def curve(step: Any) -> jax.Array:
        step = jnp.clip(step, 0, rest)  # a cycle that the stage cuts short does not go on
        cycle = jnp.searchsorted(first, step, side="right") - 1
        cosine = (1 + jnp.cos(jnp.pi * (step - first[cycle]) / length[cycle])) / 2
        return top[cycle] * (schedule.end + (1 - schedule.end) * cosine)

    return curve


def _every(schedule: Any, clock: Clock) -> int:
    every = clock.steps(schedule.every)
    if every < 1:
        raise PartitionError(f"schedule {schedule.name}: every: needs at least one step; received {schedule.every!r}")
    return every


_CURVES: dict[str, Callable[[Any, float, Clock, int], optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "step": _step,
    "exponential": _exponential,
    "one_cycle": _one_cycle,
    "reheat": _reheat,
}
