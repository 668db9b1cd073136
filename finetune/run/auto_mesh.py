"""``mesh: auto``: the fewest parts of the parameters with which every stage's step fits the devices' memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax

from finetune.distributed.mesh import make_mesh
from finetune.distributed.processes import broadcast
from finetune.distributed.sharding import Placement
from finetune.images.spec import ImageSpec
from finetune.recipe.mesh import MeshConfig
from finetune.training.memory import USABLE, describe_bytes, device_memory, step_cost
from finetune.training.stage_trainer import StageTrainer

Trainers = Callable[[Placement], Iterable[StageTrainer]]


def choose_mesh(trainers: Trainers, spec: ImageSpec) -> tuple[MeshConfig, str]:
    """The mesh, and a line that says why it is that.

    Parameters are whole on every device if they fit there, else divided among 2, 4, ... and at last all of them; layers
    are never divided (``tensor``). The step of each stage is compiled for each of these, until all fit.

    Args:
        trainers: of all training stages, on a placement.

    Raises:
        MeshError: a batch that does not divide among all devices.
    """
    count = jax.device_count()
    if count == 1:
        return MeshConfig(), "mesh: auto: there is one device"
    room, peaks = device_memory(), {}
    for fsdp in _choices(count):
        placement = Placement(make_mesh(MeshConfig(fsdp=fsdp)))
        costs = [step_cost(trainer, spec, trainer.stage.batch_size) for trainer in trainers(placement)]
        peaks[fsdp] = max((cost.bytes["peak"] for cost in costs), default=0)
        if peaks[fsdp] <= USABLE * room:
            break
    fsdp = int(broadcast(fsdp))  # processes whose devices differ in memory take the same
    return MeshConfig(fsdp=fsdp), f"mesh: auto: {_describe(peaks, fsdp, count, room)}"


def _choices(count: int) -> list[int]:
    """1, 2, 4, ... as far as they divide the devices, and all of them."""
    powers = [1 << i for i in range(count.bit_length())]
    return sorted({power for power in powers if count % power == 0} | {count})


def _describe(peaks: dict[int, int], chosen: int, count: int, room: int) -> str:
    has = f"of the {describe_bytes(room)} of each"
    if chosen not in peaks:
        return f"fsdp {chosen}, as the first process chose"
    whole = "parameters are whole on each device" if chosen == 1 else f"parameters are divided among {chosen} devices"
    takes = f"{whole}; a step takes {describe_bytes(peaks[chosen])} {has}"
    if peaks[chosen] > USABLE * room:
        return f"{takes}, which may not be enough: no division among {count} devices takes less; lower batch_size"
    before = [fsdp for fsdp in peaks if fsdp < chosen]
    return f"{takes}; {describe_bytes(peaks[before[-1]])} with fsdp {before[-1]}" if before else takes
