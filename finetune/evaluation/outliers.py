"""Images unlike all others: far from their neighbors in feature space."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from finetune.models.heads import unit_length

NEIGHBORS = 10
LIMIT = 3.0  # robust standard deviations
_BLOCK = 2**25  # similarities at a time


def neighbor_distances(features: np.ndarray, neighbors: int = NEIGHBORS) -> np.ndarray:
    """The distance of each image to its k-th nearest neighbor (Sun et al. 2022, arXiv:2204.06507).

    Features are brought to unit length first, so that distances are those of directions, between 0 and 2. They are not
    centred: that would move images with weak features, such as blank ones, close to each other and to many.

    Args:
        features: float32 [n, d].
        neighbors: k; the farthest where there are fewer others.

    Returns:
        float32 [n]; zeros for a single image.
    """
    x = np.asarray(features, np.float32)
    if len(x) < 2:
        return np.zeros(len(x), np.float32)
    keys = unit_length(jnp.asarray(x))
    rows = max(1, min(len(x), _BLOCK // len(x)))
    similarity = [
        # The last block begins early enough to be whole, so that one program serves all.
        np.asarray(_similarities(keys, min(start, len(x) - rows), rows, min(neighbors, len(x) - 1)))[-left:, -1]
        for start in range(0, len(x), rows)
        for left in [min(rows, len(x) - start)]
    ]
    return np.sqrt(np.maximum(2 - 2 * np.concatenate(similarity), 0))


@partial(jax.jit, static_argnums=(2, 3))
def _similarities(keys: jax.Array, start: int, rows: int, k: int) -> jax.Array:
    queries = jax.lax.dynamic_slice_in_dim(keys, start, rows)
    similarity = jnp.matmul(queries, keys.T, precision="highest")
    itself = jnp.arange(len(keys)) == start + jnp.arange(rows)[:, None]
    return jax.lax.top_k(jnp.where(itself, -jnp.inf, similarity), k)[0]  # the k greatest, without sorting all on CPUs


def outlier_threshold(distances: np.ndarray, limit: float = LIMIT) -> float:
    """Median + limit * 1.4826 * median absolute deviation, which is the standard deviation where distances are normal
    (Leys et al. 2013); infinite where most distances are equal, as those of copies are.

    Args:
        distances: float [n].
    """
    median = np.median(distances)
    spread = 1.4826 * np.median(np.abs(distances - median))
    return float(median + limit * spread) if spread > 0 else float("inf")
