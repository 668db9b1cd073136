"""Running out of memory within a stage: the error says what a step takes, and a batch that fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from finetune.errors import MachineError, first_line
from finetune.foreign_errors import LESS_MEMORY, is_out_of_memory
from finetune.images.spec import ImageSpec
from finetune.training.memory import USABLE, StepCost, describe_bytes, device_memory, largest_batch, step_cost
from finetune.training.stage_trainer import StageTrainer


@contextmanager
def memory_explained(trainer: StageTrainer, spec: ImageSpec) -> Iterator[None]:
    """Raises an error for want of memory as a MachineError with the estimate for this stage.

    Raises:
        MachineError: in its place.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        estimate = ""
        with suppress(Exception):  # there may be no memory to compile in, either
            estimate = describe_need(trainer, spec)
        name = trainer.stage.name
        raise MachineError(f"stage {name!r}: out of memory: {first_line(error)}{estimate}; {LESS_MEMORY}") from error


def describe_need(trainer: StageTrainer, spec: ImageSpec) -> str:
    """What a step takes, and a batch size that fits, to be added to a message."""
    size, room = trainer.stage.batch_size, device_memory()
    cost = step_cost(trainer, spec, size)
    text = (
        f"; a step with batch_size {size} takes {describe_bytes(cost.bytes['peak'])} by XLA's analysis, and the device "
    )
    text += f"has {describe_bytes(room)}"
    fits = _smaller_batch(trainer, spec, cost, room)
    if fits is None:
        return f"{text}: no batch fits"
    if cost.bytes["peak"] <= USABLE * room:
        return f"{text}: other programs may hold the rest; try batch_size: {fits}"
    return f"{text}: batch_size: {fits} fits"


def _smaller_batch(trainer: StageTrainer, spec: ImageSpec, cost: StepCost, room: int) -> int | None:
    """Half of the batch where it should have fitted, else the largest one that does."""
    if cost.bytes["peak"] > USABLE * room:
        return largest_batch(trainer, spec, cost)
    step = trainer.stage.grad_accum_steps * trainer.placement.batch_shards
    return trainer.stage.batch_size // 2 // step * step or None
