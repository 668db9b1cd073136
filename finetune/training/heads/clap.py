"""CLAP: A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models (Silva-Rodriguez et al. 2024,
arXiv:2312.12730)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from finetune.models.heads import unit_length
from finetune.models.zero_shot import TextClassifier

_TOLERANCE = 1e-4  # of the gradient's length, relative to the first


def fit_clap(
    features: np.ndarray | jax.Array,
    labels: np.ndarray,
    num_classes: int,
    text: TextClassifier,
    *,
    text_norm: float = 10.0,
    max_iterations: int = 300,
) -> tuple[jax.Array, jax.Array]:
    """A linear probe that starts at the zero-shot weights, each class held back as far as its zero-shot weights are
    right.

    Minimizes cross-entropy + mean_k(lambda_k ||w_k - t_k||^2) over weights w. Logits are CLIP's: scale * cosine of the
    image's embedding and w_k. lambda_k is the mean probability that zero-shot CLIP gives class k on its own images, as
    in the published code without options, and 1 for a class without images.

    There, t_k is the text embedding before normalization, and its length decides how much the penalty weighs; here it
    is ``text_norm`` for every class. Instead of 300 epochs of stochastic gradient descent on 20 random views of each
    image, L-BFGS goes to the minimum for the given features.

    A linear head cannot normalize embeddings; with their mean length instead, its predictions are the same, and its
    probabilities are close.

    Args:
        features: float32 [n, d], pooled features before the projection.
        labels: int [n].
        text_norm: length of text embeddings before normalization, about 10 for CLIP.
        max_iterations: limit of L-BFGS.

    Returns:
        Kernel, float32 [d, num_classes], and bias, zeros [num_classes].
    """
    x, y = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)
    kernel = _fit(x, y, text.projection, text.classes, text.scale, text_norm, max_iterations)
    return kernel, jnp.zeros(num_classes)


@jax.jit
def _fit(
    x: jax.Array,
    labels: jax.Array,
    projection: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    text_norm: jax.Array,
    max_iterations: jax.Array,
) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        projected = x @ projection
        embeddings = unit_length(projected)
        strengths = text_norm**2 * _strengths(scale * embeddings @ text, labels)

        def objective(weights: jax.Array) -> jax.Array:  # in units of the text embeddings' length
            logits = scale * embeddings @ unit_length(weights.T).T
            penalty = (strengths * ((weights - text) ** 2).sum(axis=0)).mean()
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean() + penalty

        weights = unit_length(_minimize(objective, text, max_iterations).T).T
        return scale * projection @ weights / jnp.linalg.norm(projected, axis=1).mean()


def _strengths(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Each class's mean probability on its own images, [C]; 1 without images."""
    one_hot = jax.nn.one_hot(labels, logits.shape[1])
    counts = one_hot.sum(axis=0)
    return jnp.where(counts > 0, (one_hot * jax.nn.softmax(logits)).sum(axis=0) / jnp.maximum(counts, 1), 1.0)


def _minimize(objective: Callable[[jax.Array], jax.Array], start: jax.Array, max_iterations: jax.Array) -> jax.Array:
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)
    least = _TOLERANCE * jnp.linalg.norm(jax.grad(objective)(start))

    def step(carry: tuple[jax.Array, Any, jax.Array]) -> tuple[jax.Array, Any, jax.Array]:
        params, state, count = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=objective)
        return params + updates, state, count + 1

    def proceed(carry: tuple[jax.Array, Any, jax.Array]) -> jax.Array:
        _, state, count = carry
        gradient = jnp.linalg.norm(optax.tree.get(state, "grad"))
        return (count == 0) | ((count < max_iterations) & (gradient > least))

    params, _, _ = jax.lax.while_loop(proceed, step, (start, solver.init(start), jnp.asarray(0)))
    return params
