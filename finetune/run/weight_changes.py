"""What a run did to the weights: that frozen leaves are bit-identical, and how far each partition is from its start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

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


def measure_change(params: Any, pretrained: Any, labels: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """How far each partition is from the pretrained values, in the Euclidean norm.

    Args:
        params: the classifier's.
        pretrained: the backbone's; the head is measured from zero.
        labels: path -> partition.

    Returns:
        By partition: ``parameters`` (their number), ``distance``, and ``relative`` to the norm of the pretrained
        values (None where that is zero).
    """
    source = flatten({"backbone": pretrained})
    sums: dict[str, list[float]] = {}
    for path, leaf in flatten(params).items():
        start = source.get(path, jnp.zeros_like(leaf))
        change, norm = (float(jnp.square(jnp.asarray(x, jnp.float32)).sum()) for x in (leaf - start, start))
        total = sums.setdefault(labels[path], [0, 0.0, 0.0])
        total[:] = [total[0] + leaf.size, total[1] + change, total[2] + norm]
    return {
        label: {
            "parameters": count,
            "distance": change**0.5,
            "relative": (change / norm) ** 0.5 if norm else None,
        }
        for label, (count, change, norm) in sums.items()
    }
