"""Partitions to one optax transformation: each learns by its own optimizer, rate and schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optax

from finetune.optim.optimizers import build_core
from finetune.optim.partitions import as_partitions, assign_rules, check_rules_match, kernel_of, map_paths, paths_of
from finetune.optim.schedules import StageLength, build_schedule
from finetune.optim.selectors import depths, is_embedding
from finetune.recipe import Partition


def build_optimizer(
    partitions: Sequence[Partition] | Sequence[Mapping[str, Any]],
    params: Any,
    *,
    total_steps: int,
    steps_per_epoch: int | None = None,
    batch_size: int | None = None,
) -> optax.GradientTransformation:
    """``optax.multi_transform`` over the partitions; frozen ones are ``set_to_zero`` and hold no state.

    Labels follow paths, so the transformation fits the whole parameter tree, its trainable part alone, and that part
    with adapters under ``lora``. A train step that passes only what learns computes no gradient for anything frozen.

    Args:
        partitions: rules in order, as in a recipe; dicts are checked like one.
        params: the parameter tree that the rules have to cover.
        total_steps: length of the stage, which the schedules span.
        steps_per_epoch, batch_size: for durations in epochs and in examples.

    Raises:
        PartitionError: parameters without a rule, a rule without parameters, or a schedule that does not fit.
    """
    rules = as_partitions(partitions)
    check_rules_match(params, rules)
    clock = StageLength(total_steps, steps_per_epoch, batch_size)
    labels = {path: rules[number].label for path, number in assign_rules(paths_of(params), rules).items()}
    transforms = {
        rule.label: optax.set_to_zero() if rule.frozen else _learn(rule, rate_factors(rule, labels), clock)
        for rule in rules
    }
    return optax.multi_transform(transforms, lambda tree: map_paths(lambda path, _: labels[kernel_of(path)], tree))


def learning_rates(partitions: Sequence[Partition], clock: StageLength) -> dict[str, optax.Schedule]:
    """The schedule of each partition that learns, by its name; with layer decay, of its topmost leaves."""
    return {
        rule.label: build_schedule(rule.schedule, rule.learning_rate, clock)
        for rule in partitions
        if rule.learning_rate is not None and not rule.frozen
    }


def rate_factors(rule: Partition, labels: Mapping[str, str]) -> dict[str, float]:
    """By which each leaf's rate is multiplied: 1, or the partition's layer decay to the power of blocks above."""
    if rule.layer_decay is None:
        return {}
    depth = depths(labels)
    top = max(depth.values())
    return {path: rule.layer_decay ** (top - depth[path]) for path, label in labels.items() if label == rule.label}


def decays(path: str, leaf: Any, rule: Partition) -> bool:
    """Whether weight decay acts on a leaf: on kernels, not on norms, biases, learned tokens and positions."""
    return rule.weight_decay > 0 and (rule.weight_decay_on == "all" or (leaf.ndim > 1 and not is_embedding(path)))


def _learn(rule: Partition, factors: Mapping[str, float], clock: StageLength) -> optax.GradientTransformation:
    """[core, factors by leaf, learning rate]; only the core's state means anything in another stage."""
    assert rule.learning_rate is not None  # the recipe part checks it

    def mask(tree: Any) -> Any:
        return map_paths(lambda path, leaf: decays(path, leaf, rule), tree)

    def scale(updates: Any, params: Any) -> Any:
        return map_paths(lambda path, update: update * factors[kernel_of(path)], updates)

    return optax.chain(
        build_core(rule.optimizer, rule.weight_decay, mask),
        optax.stateless(scale) if factors else optax.identity(),
        optax.scale_by_learning_rate(build_schedule(rule.schedule, rule.learning_rate, clock)),
    )
