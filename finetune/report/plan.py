"""What a recipe will do, before any image is read: what is trained, how fast, and what a step costs."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import jax
import numpy as np

from finetune.data.splits import class_names_of, count_training_images
from finetune.distributed.sharding import Placement
from finetune.errors import DataError
from finetune.files import free_gigabytes
from finetune.models.backbone import Backbone
from finetune.models.build import attach_head, open_backbone
from finetune.models.classifier import Classifier
from finetune.optim.schedules import nominal_length
from finetune.recipe import Recipe, TrainStage
from finetune.recipe.mesh import AUTO
from finetune.run.auto_mesh import choose_mesh
from finetune.run.setup import place
from finetune.training.features import extraction_batch_size
from finetune.training.frozen_cache import CacheDecision, decide_cache
from finetune.training.memory import device_memory, largest_batch, step_cost
from finetune.training.stage_trainer import StageTrainer
from finetune.trees import Variables, count_values, flatten, module_of, paths_of


def plan_recipe(recipe: Recipe, *, allow_local_code: bool = False) -> dict[str, Any]:
    """Plain JSON values about every training stage.

    Args:
        allow_local_code: import the module of your own that the recipe names, if it does.

    Returns:
        ``stages``: for each ``name``, ``partitions`` (name, parameters, frozen, optimizer, learning_rate at its peak),
        ``leaves`` (path, shape, size, partition, optimizer, learning_rate, weight_decay, lora, batch_norm), ``totals``
        (trainable and frozen parameters, bytes of the optimizer's state on one device), ``step`` (batch_size, flops of
        all devices, bytes of each) and ``largest_batch`` for the devices' memory; ``device`` and ``mesh``, the devices
        along each of its axes, with ``lines`` about them; and ``frozen_cache``: whether what is frozen is computed once
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
    stages = list(recipe.train_stages.values())

    def trainers(placement: Placement) -> list[StageTrainer]:
        return [make_trainer(stage, classifier, variables, backbone, placement) for stage in stages]

    lines = []
    if recipe.mesh == AUTO:
        mesh, line = choose_mesh(trainers, backbone.image_spec)
        recipe, lines = recipe.model_copy(update={"mesh": mesh}), [line]
    placement, more = place(recipe)
    placement.check_rules(variables["params"])
    size = placement.round_up(extraction_batch_size(recipe.evaluate.batch_size))
    return {
        "name": recipe.name,
        "backbone": recipe.backbone.origin,
        "num_classes": count,
        "device": _device(),
        "mesh": {axis: int(count) for axis, count in placement.mesh.shape.items()},
        "lines": [*lines, *more],
        "stages": [_plan_stage(trainer, variables, backbone, images, size) for trainer in trainers(placement)],
    }


def _plan_stage(
    trainer: StageTrainer, variables: Variables, backbone: Backbone, images: int | None, extraction_size: int
) -> dict[str, Any]:
    stage, spec = trainer.stage, backbone.image_spec
    cost, state = step_cost(trainer, spec, stage.batch_size), jax.eval_shape(trainer.init_state)
    sizes = {path: leaf.size for path, leaf in flatten(variables["params"]).items()}
    changed = sum(sizes[path] for path in trainer.plan.trainable - trainer.plan.adapted)
    return {
        "name": stage.name,
        "partitions": trainer.plan.summarize(variables["params"]),
        "leaves": describe_leaves(trainer, variables),
        "totals": {
            "trainable": count_values(state.params),
            "frozen": sum(sizes.values()) - changed,
            "optimizer_bytes": _bytes(state.opt_state, trainer.placement),
        },
        "step": {"batch_size": stage.batch_size, "flops": cost.flops, "bytes": cost.bytes},
        "largest_batch": largest_batch(trainer, spec, cost),
        "frozen_cache": _plan_cache(trainer, backbone, images, extraction_size).to_json(),
    }


def _plan_cache(trainer: StageTrainer, backbone: Backbone, images: int | None, size: int) -> CacheDecision:
    stage, passes = trainer.stage, None if trainer.stage.epochs is None else float(trainer.stage.epochs)
    if passes is None and images is not None:
        passes = (stage.examples or (stage.steps or 0) * stage.batch_size) / images
    return decide_cache(trainer, backbone.image_spec, size, passes=passes, images=images, free_gb=free_gigabytes())


def make_trainer(
    stage: TrainStage, classifier: Classifier, variables: Any, backbone: Backbone, placement: Placement
) -> StageTrainer:
    """The stage as it will run, but for the length of an epoch."""
    # no label is read for a plan, and no cost depends on the weights' values
    balanced = stage.loss.class_weights == "balanced"
    return StageTrainer(
        *(stage, classifier, variables, backbone.image_spec, nominal_length(stage)),
        class_weights=np.ones(classifier.num_classes, np.float32) if balanced else None,
        placement=placement,
    )


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


def _device() -> dict[str, Any]:
    """The default device, the bytes of its memory, and how many there are."""
    device = jax.local_devices()[0]
    kind, platform = device.device_kind, device.platform
    return {"kind": kind, "platform": platform, "memory_bytes": device_memory(), "count": jax.device_count()}


def _bytes(tree: Any, placement: Placement) -> int:
    """Of the part that one device has."""
    leaves, places = jax.tree.leaves(tree), jax.tree.leaves(placement.shardings(tree))
    shapes = (place.shard_shape(leaf.shape) for leaf, place in zip(leaves, places, strict=True))
    return sum(math.prod(shape) * leaf.dtype.itemsize for leaf, shape in zip(leaves, shapes, strict=True))
