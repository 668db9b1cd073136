"""LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP (Huang et al. 2024, arXiv:2404.02285)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from finetune.models.heads import unit_length
from finetune.models.zero_shot import TextClassifier

_ALPHA = 250.0  # the first blending weight, over the mean cosine of images with their class
_ALPHA_PERIOD = 10  # steps of the visual weights for one of the blending weights
_MOST_SHOTS = 16  # of the published experiments


def fit_lp_plus_plus(
    features: np.ndarray | jax.Array,
    labels: np.ndarray,
    num_classes: int,
    text: TextClassifier,
    *,
    steps: int = 300,
    momentum: float = 0.9,
) -> tuple[jax.Array, jax.Array]:
    """A linear head of weights w_k + alpha_k t_k: visual weights and class embeddings, blended by class.

    Gradient descent on all images at once. What is learned, its first values and the step sizes, which come from bounds
    of the curvature, are those of the published code. There, the visual weights start at the class sums, which is the
    class means times the number of images in a class, here at most 16. Each tenth step changes alpha, too, by its
    gradients of all steps so far together: the code never resets them. Its bias is left out, as in the paper, and the
    last step's weights are taken instead of those with the best validation accuracy.

    A linear head cannot normalize embeddings; with their mean length instead, its predictions are the same, and its
    probabilities are close.

    Args:
        features: float32 [n, d], pooled features before the projection.
        labels: int [n]. A class without images starts from its text alone.
        steps: of gradient descent.
        momentum: of the visual weights.

    Returns:
        Kernel, float32 [d, num_classes], and bias, zeros [num_classes].
    """
    x, y = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)
    return _fit(x, y, text.projection, text.classes, momentum, steps), jnp.zeros(num_classes)


class _State(NamedTuple):
    weights: jax.Array  # [e, C], the visual ones
    velocity: jax.Array
    alpha: jax.Array  # [C]
    alpha_gradients: jax.Array  # their sum over the steps


@partial(jax.jit, static_argnames="steps")
def _fit(
    x: jax.Array, labels: jax.Array, projection: jax.Array, text: jax.Array, momentum: jax.Array, steps: int
) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        projected = x @ projection
        embeddings = unit_length(projected)
        cosines = embeddings @ text
        # One over the largest curvature, by p (1 - p) <= 1/4 for each class; for alpha, the code takes a 16th of it.
        rate = 4 * len(x) / jnp.linalg.eigvalsh(embeddings.T @ embeddings)[-1]
        alpha_rate = len(x) / (4 * (cosines**2).sum(axis=0).max())

        def loss(weights: jax.Array, alpha: jax.Array) -> jax.Array:
            logits = embeddings @ weights + alpha * cosines
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(state: _State, index: jax.Array) -> tuple[_State, None]:
            gradient, alpha_gradient = jax.grad(loss, (0, 1))(state.weights, state.alpha)
            velocity = momentum * state.velocity + gradient
            gradients = state.alpha_gradients + alpha_gradient
            blends = (index + 1) % _ALPHA_PERIOD == 0
            alpha = jnp.where(blends, state.alpha - alpha_rate * gradients, state.alpha)
            return _State(state.weights - rate * velocity, velocity, alpha, gradients), None

        weights, alpha = _initial(embeddings, cosines, labels)
        first = _State(weights, jnp.zeros_like(weights), alpha, jnp.zeros_like(alpha))
        last, _ = jax.lax.scan(step, first, jnp.arange(steps))
        mean_length = jnp.linalg.norm(projected, axis=1).mean()
        return projection @ (last.weights + last.alpha * text) / mean_length


def _initial(embeddings: jax.Array, cosines: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first visual weights [e, C] and alpha [C]; classes without images do not count."""
    one_hot = jax.nn.one_hot(labels, cosines.shape[1])
    counts = one_hot.sum(axis=0)
    present = (counts > 0).sum()
    means = embeddings.T @ (one_hot / jnp.maximum(counts, 1))
    own = (one_hot * cosines).sum(axis=0) / jnp.maximum(counts, 1)
    shots = jnp.minimum(len(embeddings) / present, _MOST_SHOTS)
    return shots * means, jnp.full(len(counts), _ALPHA * own.sum() / present)
