"""What a recipe will do, before any image is read: what is trained, how fast, and what a step costs."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from finetune.data.splits import class_names_of, count_training_images
from finetune.errors import DataError
from finetune.files import free_gigabytes
from finetune.models.backbone import Backbone
from finetune.models.build import attach_head, open_backbone
from finetune.models.classifier import Classifier
from finetune.optim.schedules import StageLength
from finetune.recipe import Recipe, TrainStage
from finetune.training.features import extraction_batch_size
from finetune.training.frozen_cache import CacheDecision, decide_cache
from finetune.training.stage_trainer import StageTrainer
from finetune.trees import Variables, flatten, module_of, paths_of

_EPOCH = 1000  # steps; how long an epoch really is only the data tells, and nothing here depends on it
_USABLE = 0.9  # of a device's memory; the rest is for fragments and for the images on their way


@dataclass(frozen=True)
class StepCost:
    """Of one compiled train step, by XLA's own analysis.

    Attributes:
        flops: of the whole batch. XLA counts the body of a loop once; with ``grad_accum_steps`` that is multiplied out.
        bytes: ``arguments`` (state, frozen variables, images), ``temporary`` (activations, gradients), and ``peak``,
            both with what the outputs need beyond the donated arguments.
    """

    flops: float
    bytes: dict[str, int]


def plan_recipe(recipe: Recipe, *, allow_local_code: bool = False) -> dict[str, Any]:
    """Plain JSON values about every training stage.

    Args:
        allow_local_code: import the module of your own that the recipe names, if it does.

    Returns:
        ``stages``: for each ``name``, ``partitions`` (name, parameters, frozen, optimizer, learning_rate at its peak),
        ``leaves`` (path, shape, size, partition, optimizer, learning_rate, weight_decay, lora, batch_norm), ``totals``
        (trainable and frozen parameters, bytes of the optimizer's state), ``step`` (batch_size, flops, bytes) and
        ``largest_batch`` for the device's memory; and ``frozen_cache``: whether what is frozen is computed once
        (``use``, None where that depends on the number of images, which was not read), why, and the numbers behind it.

    Raises:
        FinetuneError: anything that would stop the run before its first step.
    """
    backbone = open_backbone(recipe.backbone, seed=recipe.seed, allow_local_code=allow_local_code)
    count = recipe.head.num_classes or len(class_names_of(recipe.data))
    classifier, variables = attach_head(backbone, recipe.head, count, seed=recipe.seed)
    images = None
    if recipe.head.num_classes is None:  # the source has been read
        with suppress(DataError):  # too few for the splits, as far as that shows without decoding them
            images = count_training_images(recipe.data, recipe.seed)
    size = extraction_batch_size(recipe.evaluate.batch_size)
    stages = [stage for stage in recipe.stages if isinstance(stage, TrainStage)]
    return {
        "name": recipe.name,
        "backbone": recipe.backbone.origin,
        "num_classes": count,
        "device": _device(),
        "stages": [_plan_stage(stage, classifier, variables, backbone, images, size) for stage in stages],
    }


def _plan_stage(
    stage: TrainStage,
    classifier: Classifier,
    variables: Variables,
    backbone: Backbone,
    images: int | None,
    extraction_size: int,
) -> dict[str, Any]:
    trainer = make_trainer(stage, classifier, variables, backbone)
    cost, state = step_cost(trainer, backbone, stage.batch_size), jax.eval_shape(trainer.init_state)
    sizes = {path: leaf.size for path, leaf in flatten(variables["params"]).items()}
    changed = sum(sizes[path] for path in trainer.plan.trainable - trainer.plan.adapted)
    return {
        "name": stage.name,
        "partitions": trainer.plan.summarize(variables["params"]),
        "leaves": describe_leaves(trainer, variables),
        "totals": {
            "trainable": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "frozen": sum(sizes.values()) - changed,
            "optimizer_bytes": _bytes(state.opt_state),
        },
        "step": {"batch_size": stage.batch_size, "flops": cost.flops, "bytes": cost.bytes},
        "largest_batch": largest_batch(trainer, backbone, cost),
        "frozen_cache": _plan_cache(trainer, backbone, images, extraction_size).to_json(),
    }


def _plan_cache(trainer: StageTrainer, backbone: Backbone, images: int | None, size: int) -> CacheDecision:
    stage, passes = trainer.stage, None if trainer.stage.epochs is None else float(trainer.stage.epochs)
    if passes is None and images is not None:
        passes = (stage.examples or (stage.steps or 0) * stage.batch_size) / images
    return decide_cache(trainer, backbone.image_spec, size, passes=passes, images=images, free_gb=free_gigabytes())


def make_trainer(stage: TrainStage, classifier: Classifier, variables: Any, backbone: Backbone) -> StageTrainer:
    """The stage as it will run, but for the length of an epoch."""
    total = stage.steps or (stage.epochs or 0) * _EPOCH or -(-(stage.examples or 0) // stage.batch_size)
    return StageTrainer(stage, classifier, variables, backbone.image_spec, StageLength(total, _EPOCH, stage.batch_size))


def describe_leaves(trainer: StageTrainer, variables: Variables) -> list[dict[str, Any]]:
    """One record for each parameter, in the tree's order; ``batch_norm`` is None where a module has no statistics."""
    plan = trainer.plan
    statistics = {module_of(path) for path in paths_of(variables.get("batch_stats", {}))}
    records = []
    for path, leaf in flatten(variables["params"]).items():
        rule, module = plan.rules[path], module_of(path)
        norm = "frozen" if module in plan.frozen_norms else "update"
        records.append(
            {
                "path": path,
                "shape": list(leaf.shape),
                "size": leaf.size,
                "partition": rule.label,
                "optimizer": None if rule.frozen else rule.optimizer.name,
                "learning_rate": None if rule.learning_rate is None else rule.learning_rate * plan.rate_factor(path),
                "weight_decay": rule.weight_decay if not rule.frozen and plan.decays(path, leaf) else 0.0,
                "lora": None if rule.lora is None else rule.lora.rank,
                "batch_norm": norm if module in statistics else None,
            }
        )
    return records


def step_cost(trainer: StageTrainer, backbone: Backbone, batch_size: int) -> StepCost:
    """Compiles the stage's step for a batch size, and reads what XLA says of it."""
    spec = backbone.image_spec
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, *spec.shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    compiled = trainer.step.lower(jax.eval_shape(trainer.init_state), trainer.frozen, batch).compile()  # type: ignore[attr-defined]
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
    arguments, temporary = int(memory.argument_size_in_bytes), int(memory.temp_size_in_bytes)
    beyond = max(0, int(memory.output_size_in_bytes) - int(memory.alias_size_in_bytes))
    peak = arguments + temporary + beyond
    flops = float(analysis["flops"]) * trainer.stage.grad_accum_steps
    return StepCost(flops, {"arguments": arguments, "temporary": temporary, "peak": peak})


def largest_batch(trainer: StageTrainer, backbone: Backbone, cost: StepCost) -> int | None:
    """The largest batch whose step this device's memory should hold, by compiling; None if none does.

    Memory grows with the batch, but not quite in proportion: each guess goes through the two peaks known last, and the
    answer is one that was compiled.
    """
    size, parts = trainer.stage.batch_size, trainer.stage.grad_accum_steps
    room = _USABLE * _device()["memory_bytes"]
    peaks = {0: cost.bytes["arguments"], size: cost.bytes["peak"]}
    last, newest = 0, size
    for _ in range(4):
        slope = max(1.0, (peaks[newest] - peaks[last]) / (newest - last))
        guess = newest + int((0.975 * room - peaks[newest]) / slope)  # to end up below, and close
        guess = guess // (8 * parts) * 8 * parts or guess // parts * parts
        if guess in peaks or guess < 1:
            break
        peaks[guess] = step_cost(trainer, backbone, guess).bytes["peak"]
        last, newest = newest, guess
        if 0.95 * room <= peaks[guess] <= room:
            break
    return max(size for size, peak in peaks.items() if peak <= room or size == 0) or None


def _device() -> dict[str, Any]:
    """The default device, and the bytes of memory that it has: for a CPU, the machine's."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"kind": device.device_kind, "platform": device.platform, "memory_bytes": int(memory)}


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
