"""Optimizer state from one stage to the next, for parameters that both train with the same optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import optax

from finetune.recipe import Partition


def transfer_state(
    old: optax.transforms.PartitionState,
    new: optax.transforms.PartitionState,
    before: Sequence[Partition],
    now: Sequence[Partition],
) -> tuple[optax.transforms.PartitionState, list[str]]:
    """``new`` with the moments and counts of ``old`` where they fit, and the names of the partitions where they did.

    A partition takes over the state of an earlier one with the same optimizer that has all of its leaves: moments and
    the count that corrects their bias belong together, so there is no partial transfer. Adapters are drawn anew in each
    stage, so their state begins anew too, as do learning-rate schedules.

    Args:
        old, new: states of two optimizers from :func:`build_optimizer`; ``new`` is fresh.
        before, now: their partitions.
    """
    optimizers = {rule.label: rule.optimizer for rule in before if not rule.frozen}
    states, carried = dict(new.inner_states), []
    for rule in now:
        for label in [label for label, optimizer in optimizers.items() if optimizer == rule.optimizer]:
            if rule.frozen or rule.lora is not None:
                continue
            core, *rest = states[rule.label].inner_state
            earlier = _leaves(old.inner_states[label].inner_state[0])
            current = _leaves(core)
            if current and all(earlier.get(key) is not None and _fits(earlier[key], current[key]) for key in current):
                core = jax.tree_util.tree_map_with_path(
                    lambda keys, _, earlier=earlier: earlier[jax.tree_util.keystr(keys)], core
                )
                states[rule.label] = states[rule.label]._replace(inner_state=(core, *rest))
                carried.append(rule.label)
                break
    return new._replace(inner_states=states), carried


def _leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _fits(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype
