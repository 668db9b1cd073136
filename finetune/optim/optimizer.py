"""Partitions to one optax transformation: each learns by its own optimizer, rate and schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from finetune.optim.partitions import as_partitions, check_rules_match, label_params, partition_names
from finetune.recipe import Partition, Schedule


def build_optimizer(
    partitions: Sequence[Partition] | Sequence[Mapping[str, Any]], params: Any, *, total_steps: int
) -> optax.GradientTransformation:
    """``optax.multi_transform`` over the partitions; frozen ones are ``set_to_zero`` and hold no state.

    Labels follow paths, so the transformation fits both the whole parameter tree and its trainable part alone; a
    train step that passes only the latter computes no gradient for anything frozen.

    Args:
        partitions: rules in order, as in a recipe; dicts are checked like one.
        params: the parameter tree that the rules have to cover.
        total_steps: length of the stage, which the schedules span.

    Raises:
        PartitionError: parameters without a rule, or a rule without parameters.
    """
    rules = as_partitions(partitions)
    label_params(params, rules)
    check_rules_match(params, rules)
    transforms = {
        name: optax.set_to_zero() if rule.frozen else _optimizer(rule, total_steps)
        for name, rule in zip(partition_names(rules), rules, strict=True)
    }
    return optax.multi_transform(transforms, lambda tree: label_params(tree, rules))


def build_schedule(schedule: Schedule, peak: float, total_steps: int) -> optax.Schedule:
    """step -> learning rate. The warm-up rises from peak / warm-up steps, so that no step is lost at rate zero."""
    warmup = round(schedule.warmup * total_steps)
    rest = max(1, total_steps - warmup)
    curve = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=schedule.end),
        "linear": lambda: optax.linear_schedule(peak, peak * schedule.end, rest),
    }[schedule.name]()
    if warmup == 0:
        return curve
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1)), curve], [warmup])


def learning_rates(partitions: Sequence[Partition], total_steps: int) -> dict[str, optax.Schedule]:
    """The schedule of each partition that learns, by its name."""
    return {
        name: build_schedule(rule.schedule, rule.learning_rate, total_steps)
        for name, rule in zip(partition_names(partitions), partitions, strict=True)
        if rule.learning_rate is not None and not rule.frozen
    }


def _optimizer(rule: Partition, total_steps: int) -> optax.GradientTransformation:
    assert rule.learning_rate is not None  # the recipe part checks it
    rate = build_schedule(rule.schedule, rule.learning_rate, total_steps)
    gradient = {
        "sgd": lambda: optax.trace(rule.momentum) if rule.momentum else optax.identity(),
        "adam": optax.scale_by_adam,
        "adamw": optax.scale_by_adam,
    }[rule.optimizer]()
    decay = optax.add_decayed_weights(rule.weight_decay, mask=_decays) if rule.weight_decay else optax.identity()
    return optax.chain(gradient, decay, optax.scale_by_learning_rate(rate))


def _decays(params: Any) -> Any:
    """Kernels shrink; norms' scales and biases do not."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
