"""What a step takes of a device's memory, by XLA's own analysis, and the largest batch that it leaves room for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from finetune.images.spec import ImageSpec
from finetune.training.flops import count_flops
from finetune.training.stage_trainer import StageTrainer

USABLE = 0.9  # of a device's memory; the rest is for fragments and for the images on their way


@dataclass(frozen=True)
class StepCost:
    """Of one compiled train step, by XLA's own analysis.

    Attributes:
        flops: of the whole batch, on all devices together.
        bytes: of each device: ``arguments`` (state, frozen variables, images), ``temporary`` (activations, gradients),
            and ``peak``, both with what the outputs need beyond the donated arguments.
    """

    flops: float
    bytes: dict[str, int]


def step_cost(trainer: StageTrainer, spec: ImageSpec, batch_size: int) -> StepCost:
    """Compiles the stage's step for a batch size, and reads what XLA says of it. Nothing is put on a device."""
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *spec.shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    step: Any = trainer.step
    traced = step.trace(*trainer.shapes(), trainer.placement.batch_shapes(batch))
    lowered = traced.lower()
    compiled = lowered.compile()
    flops = count_flops(traced, lowered, compiled, trainer.placement.mesh.size)
    return StepCost(flops, memory_of(compiled))


def memory_of(compiled: Any) -> dict[str, int]:
    """``bytes`` of a :class:`StepCost`, of any compiled program."""
    memory = compiled.memory_analysis()
    arguments, temporary = int(memory.argument_size_in_bytes), int(memory.temp_size_in_bytes)
    beyond = max(0, int(memory.output_size_in_bytes) - int(memory.alias_size_in_bytes))
    return {"arguments": arguments, "temporary": temporary, "peak": arguments + temporary + beyond}


def largest_batch(trainer: StageTrainer, spec: ImageSpec, cost: StepCost) -> int | None:
    """The largest batch whose step a device's memory should hold, by compiling; None if none does.

    Memory grows with the batch, but not quite in proportion: each guess goes through the two peaks known last, and the
    answer is one that was compiled, and can be divided among devices and parts.

    Args:
        cost: of the stage's own batch.
    """
    size, parts = trainer.stage.batch_size, trainer.stage.grad_accum_steps * trainer.placement.batch_shards
    room = USABLE * device_memory()
    peaks = {0: cost.bytes["arguments"], size: cost.bytes["peak"]}
    last, newest = 0, size
    for _ in range(4):
        slope = max(1.0, (peaks[newest] - peaks[last]) / (newest - last))
        guess = newest + int((0.975 * room - peaks[newest]) / slope)  # to end up below, and close
        guess = guess // (8 * parts) * 8 * parts or guess // parts * parts
        if guess in peaks or guess < 1:
            break
        peaks[guess] = step_cost(trainer, spec, guess).bytes["peak"]
        last, newest = newest, guess
        if 0.95 * room <= peaks[guess] <= room:
            break
    return max(size for size, peak in peaks.items() if peak <= room or size == 0) or None


def device_memory() -> int:
    """Bytes of the default device's memory; of a CPU, its share of the machine's."""
    device = jax.local_devices()[0]
    stats: Mapping[str, Any] = device.memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return int(limit)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def describe_bytes(size: float) -> str:
    """``1.25 GB``, or ``36.5 MB`` below one."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
