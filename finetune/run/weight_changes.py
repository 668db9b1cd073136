"""Proof of what a run did to the weights: what was frozen is as it was, and how far the rest moved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict


def hash_leaves(variables: Any) -> dict[str, str]:
    """Path -> SHA-256 over dtype, shape and bytes of the array."""
    hashes = {}
    for path, leaf in flatten_dict(variables, sep="/").items():
        array = np.ascontiguousarray(leaf)
        digest = hashlib.sha256(f"{array.dtype} {np.shape(leaf)}\n".encode())
        digest.update(array.tobytes())
        hashes[path] = digest.hexdigest()
    return hashes


def unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
    """How many frozen parameters and held statistics there are, and which of them are not bit-identical any more."""
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
    source = flatten_dict({"backbone": pretrained}, sep="/")
    sums: dict[str, list[float]] = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        start = source.get(path, jnp.zeros_like(leaf))
        moved, norm = (float(jnp.square(jnp.asarray(x, jnp.float32)).sum()) for x in (leaf - start, start))
        total = sums.setdefault(labels[path], [0, 0.0, 0.0])
        total[:] = [total[0] + leaf.size, total[1] + moved, total[2] + norm]
    return {
        label: {
            "parameters": count,
            "distance": moved**0.5,
            "relative": (moved / norm) ** 0.5 if norm else None,
        }
        for label, (count, moved, norm) in sums.items()
    }
