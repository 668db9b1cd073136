"""Running statistics of batch normalization for weights that were mixed, and never trained as they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune.distributed.sharding import Placement, on_one_device
from finetune.images.spec import ImageSpec
from finetune.models.classifier import Classifier
from finetune.models.frozen_batch_norm import freeze_batch_norm
from finetune.trees import Variables, fetch, flatten, merge, module_of, unflatten

_STATISTICS = "batch_stats"


def differing_statistics(first: Variables, second: Variables) -> frozenset[str]:
    """Paths in ``batch_stats`` whose arrays differ: those that training has changed."""
    ours, theirs = (flatten(variables.get(_STATISTICS, {})) for variables in (first, second))
    return frozenset(path for path in ours if not np.array_equal(fetch(ours[path]), fetch(theirs[path])))


def make_estimator(
    classifier: Classifier,
    spec: ImageSpec,
    statistics: Variables,
    paths: Collection[str],
    placement: Placement | None = None,
) -> Callable[[Variables, Iterable[Mapping[str, Any]]], dict[str, Any]]:
    """``estimate(variables, batches)``: the variables with statistics that fit their weights (Izmailov et al. 2018,
    arXiv:1803.05407, section 3.2). Compiled once.

    Each is the mean of what the batches have in training, every batch with the same weight. A module's running average
    is linear in its old value, so one batch with two old values tells its momentum.

    Args:
        statistics: ``batch_stats``, of some variables.
        paths: in it, of what is estimated. All other modules keep their statistics, and use them.
        placement: of batches, where there are several devices.

    Args of the estimator:
        batches: with ``image``, uint8 [N, H, W, C]; at least one.
    """
    fixed = {module_of(path) for path in flatten(statistics)} - {module_of(path) for path in paths}

    @jax.jit
    def after(variables: Variables, images: jax.Array, old: float, key: jax.Array) -> dict[str, jax.Array]:
        leaves = flatten(variables[_STATISTICS])
        given = {path: jnp.full_like(leaf, old) if path in paths else leaf for path, leaf in leaves.items()}
        with ExitStack() as interceptors:
            if fixed:
                interceptors.enter_context(freeze_batch_norm(fixed))
            _, updated = classifier.apply(
                {**variables, _STATISTICS: unflatten(given)},
                spec.normalize(images),
                train=True,
                backbone_train=True,
                rngs={"dropout": key, "params": jax.random.fold_in(key, 1)},
                mutable=sorted(variables.keys() - {"params"}),
            )
        return {path: leaf for path, leaf in flatten(updated[_STATISTICS]).items() if path in paths}

    put = (placement or on_one_device()).put_batch

    def estimate(variables: Variables, batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        sums: dict[str, Any] = {}
        momenta: dict[str, Any] = {}
        for count, batch in enumerate(batches, start=1):
            images, key = put(batch["image"]), jax.random.key(count)
            parts = after(variables, images, 0.0, key)
            if not momenta:
                momenta = {path: leaf - parts[path] for path, leaf in after(variables, images, 1.0, key).items()}
            sums = {path: leaf + sums.get(path, 0.0) for path, leaf in parts.items()}
        means = {path: total / count / (1 - momenta[path]) for path, total in sums.items()}
        return merge(variables, {_STATISTICS: unflatten(means)})

    return estimate
