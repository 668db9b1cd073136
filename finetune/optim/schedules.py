"""Learning-rate schedules by name, over optax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax

from finetune.errors import PartitionError
from finetune.recipe import Length, Schedule, TrainStage

_EPOCH = 1000  # steps, where only the data could tell


@dataclass(frozen=True)
class StageLength:
    """How long a stage is.

    Attributes:
        total_steps: optimizer steps.
        steps_per_epoch, batch_size: translate durations given in epochs and in examples.
    """

    total_steps: int
    steps_per_epoch: int | None = None
    batch_size: int | None = None

    def steps(self, duration: Length) -> int:
        """A duration in optimizer steps.

        Raises:
            PartitionError: a unit that needs ``steps_per_epoch`` or ``batch_size``, which is not known.
        """
        if duration.steps is not None:
            return duration.steps
        if duration.percent is not None:
            return round(duration.percent / 100 * self.total_steps)
        unit, per = ("epochs", self.steps_per_epoch) if duration.epochs is not None else ("examples", self.batch_size)
        if per is None:
            needed = "steps_per_epoch" if unit == "epochs" else "batch_size"
            raise PartitionError(f"a duration in {unit} needs {needed}; pass it, or give the duration in steps")
        return round(duration.epochs * per) if duration.epochs is not None else -(-(duration.examples or 0) // per)


def nominal_length(stage: TrainStage) -> StageLength:
    """Of a stage whose images are not known, so that an epoch is taken to have 1000 steps."""
    total = stage.steps or (stage.epochs or 0) * _EPOCH or -(-(stage.examples or 0) // stage.batch_size)
    return StageLength(total, _EPOCH, stage.batch_size)


def build_schedule(schedule: Schedule, peak: float, length: StageLength) -> optax.Schedule:
    """step -> learning rate.

    A warm-up rises from peak / warm-up steps, or from ``warmup_init_factor`` times the peak, to the peak. The curve
    fills the rest of the stage and keeps its last value after it. ``warmup_init_factor: 0`` with ``cosine`` is
    ``optax.warmup_cosine_decay_schedule``, the schedule of Flax's guide.

    Raises:
        PartitionError: durations that do not fit into the stage.
    """
    warmup, total = length.steps(schedule.warmup), length.total_steps
    if warmup and warmup >= total:
        raise PartitionError(
            f"schedule {schedule.name}: a warm-up of {warmup} steps in a stage of {total}; make it shorter"
        )
    if getattr(schedule, "warmup_init_factor", None) is not None:
        _one_step_or_more(schedule, "warmup", length)
    curve = _CURVES[schedule.name](schedule, peak, length, warmup)
    if warmup == 0 or schedule.name == "one_cycle":
        return curve
    if schedule.warmup_init_factor is None:
        rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    else:
        rise = optax.linear_schedule(peak * schedule.warmup_init_factor, peak, warmup)
    return optax.join_schedules([rise, curve], [warmup])


def _constant(schedule: Any, peak: float, length: StageLength, warmup: int) -> optax.Schedule:
    return optax.constant_schedule(peak)


def _cosine(schedule: Any, peak: float, length: StageLength, warmup: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, max(1, length.total_steps - warmup), alpha=schedule.end_factor)


def _linear(schedule: Any, peak: float, length: StageLength, warmup: int) -> optax.Schedule:
    return optax.linear_schedule(peak, peak * schedule.end_factor, max(1, length.total_steps - warmup))


def _step(schedule: Any, peak: float, length: StageLength, warmup: int) -> optax.Schedule:
    milestones = [length.steps(milestone) for milestone in schedule.milestones]
    if milestones != sorted(set(milestones)) or milestones[0] <= warmup or milestones[-1] >= length.total_steps:
        raise PartitionError(
            f"schedule step: milestones have to rise, after the warm-up ({warmup}) and before the stage's end "
            f"({length.total_steps}); received, in steps: {', '.join(map(str, milestones))}"
        )
    return optax.piecewise_constant_schedule(peak, {step - warmup: schedule.decay_rate for step in milestones})


def _exponential(schedule: Any, peak: float, length: StageLength, warmup: int) -> optax.Schedule:
    transition, rest = _one_step_or_more(schedule, "transition", length), length.total_steps - warmup
    last = rest // transition if schedule.staircase else rest / transition
    return optax.exponential_decay(
        peak,
        transition,
        schedule.decay_rate,
        staircase=schedule.staircase,
        end_value=peak * schedule.decay_rate**last,
    )


def _one_cycle(schedule: Any, peak: float, length: StageLength, warmup: int) -> optax.Schedule:
    """From the first step to the last, both included. As in PyTorch, the peak of a rise given as a share of the stage
    may lie between two steps."""
    share = schedule.warmup.percent
    rise = (warmup if share is None else share / 100 * length.total_steps) - 1
    low, end = peak * schedule.init_factor, peak * schedule.end_factor
    up = optax.cosine_decay_schedule(low - peak, max(1, rise))  # a fall run backwards: from low to the peak
    down = optax.cosine_decay_schedule(peak - end, length.total_steps - 1 - rise)
    return lambda step: jnp.where(step < rise, peak + up(step), end + down(step - rise))


def _cosine_restarts(schedule: Any, peak: float, length: StageLength, warmup: int) -> optax.Schedule:
    first, rest = _one_step_or_more(schedule, "cycle", length), length.total_steps - warmup
    cycles: list[optax.Schedule] = []
    starts = [0]
    while starts[-1] < rest:
        steps = max(1, round(first * schedule.cycle_mul ** len(cycles)))
        top = peak * schedule.cycle_decay ** len(cycles)
        cycles.append(optax.cosine_decay_schedule(top, steps, alpha=schedule.end_factor))
        starts.append(starts[-1] + steps)
    curve = optax.join_schedules(cycles, starts[1:-1])
    return lambda step: curve(jnp.minimum(step, rest))  # a cycle that the stage cuts short does not go on


def _one_step_or_more(schedule: Any, field: str, length: StageLength) -> int:
    duration = getattr(schedule, field)
    steps = length.steps(duration)
    if steps < 1:
        received = ", ".join(f"{unit}: {size:g}" for unit, size in duration.model_dump(exclude_none=True).items())
        raise PartitionError(
            f"schedule {schedule.name}: {field}: needs at least one step; received {{{received}}} in a stage of "
            f"{length.total_steps}; make it longer"
        )
    return steps


_CURVES: dict[str, Callable[[Any, float, StageLength, int], optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "step": _step,
    "exponential": _exponential,
    "one_cycle": _one_cycle,
    "cosine_restarts": _cosine_restarts,
}
