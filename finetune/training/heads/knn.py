"""The memory of a k-nearest-neighbour head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from finetune.models.heads import unit_length


def fit_knn(features: np.ndarray | jax.Array, labels: np.ndarray) -> dict[str, dict[str, jax.Array]]:
    """Variables of a :class:`~finetune.models.heads.KnnHead` that knows these images.

    Args:
        features: float32 [n, d].
        labels: int [n].
    """
    keys = unit_length(jnp.asarray(features))
    return {"memory": {"keys": keys, "labels": jnp.asarray(labels, jnp.int32)}}
