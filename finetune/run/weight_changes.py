"""What a run did to the weights: that frozen leaves are bit-identical, and how far the others are from their start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from finetune.models.depth import DepthOrder
from finetune.trees import flatten


def compare_frozen(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
    """How many frozen parameters and statistics there are, and which of them are not bit-identical any more.

    Args:
        before, after: ``collection/path`` -> hash, from :func:`finetune.trees.hash_leaves`.
    """
    return {
        "parameters": sum(path.startswith("params/") for path in before),
        "statistics": sum(not path.startswith("params/") for path in before),
        "changed": sorted(path for path in before if after.get(path) != before[path]),
    }


def measure_change(params: Any, pretrained: Any, *labels: Mapping[str, str]) -> list[dict[str, dict[str, Any]]]:
    """How far each part is from the pretrained values, in the Euclidean norm.

    Args:
        params: the classifier's.
        pretrained: the backbone's; the head is measured from zero.
        labels: path -> part, such as a partition or a layer; one or several ways to see the parameters.

    Returns:
        For each of the ways, by part, in the order of the labels: ``parameters`` (their number), ``distance``, and
        ``relative`` to the norm of the pretrained values (None where that is zero).
    """
    leaves, source = flatten(params), flatten({"backbone": pretrained})
    squares = jax.device_get(_squares(leaves, {path: source[path] for path in leaves.keys() & source.keys()}))
    sums: list[dict[str, list[float]]] = [{} for _ in labels]
    for path, leaf in leaves.items():
        change, norm = map(float, squares[path])
        for parts, label in zip(sums, labels, strict=True):
            total = parts.setdefault(label[path], [0, 0.0, 0.0])
            total[:] = [total[0] + leaf.size, total[1] + change, total[2] + norm]
    orders = [dict.fromkeys(label.values()) for label in labels]
    return [
        {part: _describe(*parts[part]) for part in order if part in parts}
        for order, parts in zip(orders, sums, strict=True)
    ]


@jax.jit
def _squares(leaves: dict[str, Any], source: dict[str, Any]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Squared norms of each leaf's change, from zero where the source has none, and of the source's leaf."""

    def square(x: jax.Array) -> jax.Array:
        return jnp.square(x.astype(jnp.float32)).sum()

    starts = {path: source.get(path, jnp.zeros_like(leaf)) for path, leaf in leaves.items()}
    return {path: (square(leaf - starts[path]), square(starts[path])) for path, leaf in leaves.items()}


def _describe(count: float, change: float, norm: float) -> dict[str, Any]:
    return {"parameters": count, "distance": change**0.5, "relative": (change / norm) ** 0.5 if norm else None}


def layers_of(paths: Iterable[str], order: DepthOrder | None) -> dict[str, str]:
    """path of a parameter -> its layer, from the input to the output: the blocks of the backbone by their path, what is
    before and after them by its first name, and the head.

    Args:
        paths: of a classifier's parameters.
        order: of its backbone; where it is None, each first name is a layer.
    """
    keyed = []
    for path in paths:
        part, _, inner = path.partition("/")
        key, layer = (order.key(inner), order.layer(inner)) if order and part == "backbone" else (None, None)
        last = (4,) if part == "head" else (3,)
        keyed.append((key or last, path, layer or (inner.partition("/")[0] if part == "backbone" else part)))
    return {path: layer for _, path, layer in sorted(keyed)}
