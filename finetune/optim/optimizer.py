"""Partitions to one optax transformation: each trains with its own optimizer, learning rate and schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optax

from finetune.errors import PartitionError
from finetune.models.depth import DepthOrder
from finetune.optim.optimizers import build_core
from finetune.optim.parameter_plan import ParameterPlan
from finetune.optim.partitions import LORA, as_partitions, kernel_of, tree_depth_order
from finetune.optim.schedules import StageLength, build_schedule
from finetune.optim.selectors import needs_depth
from finetune.recipe import Partition
from finetune.trees import map_paths, paths_of


def build_optimizer(
    partitions: Sequence[Partition] | Sequence[Mapping[str, Any]],
    params: Any,
    *,
    total_steps: int,
    steps_per_epoch: int | None = None,
    batch_size: int | None = None,
    depth_order: DepthOrder | None = None,
) -> optax.GradientTransformation:
    """``optax.multi_transform`` over the partitions; frozen ones are ``set_to_zero`` and have no state.

    Labels follow paths, so the transformation fits the whole parameter tree, its trainable part alone, and that part
    with adapters under ``lora`` in place of their kernels. A train step that passes only trainable parameters computes
    no gradient for a frozen one. Adapters and the pull of ``l2_sp`` are part of the step, not of its optimizer:
    :class:`~finetune.training.stage_trainer.StageTrainer` has both.

    Args:
        partitions: rules in order, as in a recipe; dicts are checked like one.
        params: the parameter tree that the rules have to cover.
        total_steps: length of the stage, which the schedules span.
        steps_per_epoch, batch_size: for durations in epochs and in examples.
        depth_order: of the backbone's blocks, for ``blocks[...]`` and ``layer_decay``; by default that of the family
            whose backbones have these paths.

    Raises:
        PartitionError: parameters that match no rule, a rule that takes none, a schedule that does not fit, or
            ``l2_sp``; and from ``init``, where the tree has a kernel that ``lora`` keeps.
    """
    rules = as_partitions(partitions)
    if any(needs_depth(rule.match) or rule.layer_decay is not None for rule in rules):
        depth_order = depth_order or tree_depth_order(paths_of(params))
    plan = ParameterPlan.make({"params": params}, rules, depth_order)
    for rule in rules:
        if rule.l2_sp:
            raise PartitionError(
                f"partitions: the rule {rule.match!r}: l2_sp {rule.l2_sp:g}: an optimizer has no pull to pretrained "
                "values; leave it out, or use StageTrainer, whose step has it"
            )
    optimizer = plan_optimizer(plan, StageLength(total_steps, steps_per_epoch, batch_size))
    return _keeping_adapted_kernels(optimizer, plan) if plan.adapted else optimizer


def plan_optimizer(plan: ParameterPlan, length: StageLength) -> optax.GradientTransformation:
    """The optimizer of a plan; see :func:`build_optimizer`."""
    transforms = {
        rule.label: optax.set_to_zero() if rule.frozen else _partition_optimizer(rule, plan, length)
        for rule in plan.partitions
    }

    def labels(tree: Any) -> Any:
        return map_paths(lambda path, _: plan.labels[kernel_of(path)], tree)

    return optax.multi_transform(transforms, labels)


def _keeping_adapted_kernels(
    optimizer: optax.GradientTransformation, plan: ParameterPlan
) -> optax.GradientTransformation:
    """The optimizer, which refuses a tree with kernels that adapters stand for: it would train them."""

    def refuse(path: str, _: Any) -> None:
        if path in plan.adapted:
            raise PartitionError(
                f"partitions: the rule {plan.rules[path].match!r}: lora: {path} would be trained itself, since an "
                f"optimizer makes no adapters; leave such kernels out of the tree and put adapters under {LORA!r} "
                "(finetune.models.lora.init_adapters), or use StageTrainer, which does both"
            )

    def init(params: Any) -> Any:
        map_paths(refuse, params)
        return optimizer.init(params)

    return optimizer._replace(init=init)


def learning_rates(partitions: Sequence[Partition], length: StageLength) -> dict[str, optax.Schedule]:
    """The schedule of each trainable partition, by its name; with layer decay, that of its topmost parameters."""
    return {
        rule.label: build_schedule(rule.schedule, rule.learning_rate, length)
        for rule in partitions
        if rule.learning_rate is not None and not rule.frozen
    }


def _partition_optimizer(rule: Partition, plan: ParameterPlan, length: StageLength) -> optax.GradientTransformation:
    """[core, factors by leaf, learning rate]; only the core's state means anything in another stage."""
    assert rule.learning_rate is not None  # the recipe checks it

    def decay_mask(tree: Any) -> Any:
        return map_paths(lambda path, leaf: plan.decays(kernel_of(path), leaf), tree)

    def scale(updates: Any, params: Any) -> Any:
        return map_paths(lambda path, update: update * plan.rate_factor(kernel_of(path)), updates)

    return optax.chain(
        build_core(rule.optimizer, rule.weight_decay, decay_mask),
        optax.identity() if rule.layer_decay is None else optax.stateless(scale),
        optax.scale_by_learning_rate(build_schedule(rule.schedule, rule.learning_rate, length)),
    )
