"""Losses by name: how far logits are from what an image shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from finetune.data.labeled_images import count_classes
from finetune.errors import RecipeError
from finetune.recipe import Loss


def per_example_loss(
    loss: Loss, logits: jax.Array, targets: jax.Array, weights: Any = None
) -> tuple[jax.Array, jax.Array]:
    """A batch's losses and how much each image counts: the batch's loss is sum(losses) / sum(weights).

    Args:
        logits: float32 [N, C].
        targets: int [N], or float32 [N, C]: distributions over the classes, or for ``sigmoid`` which classes there are.
        weights: float32 [C], how much each class counts. With classes as targets the mean is weighted by them, with
            distributions it is over images, both as in PyTorch.

    Returns:
        float32 [N] each.
    """
    classes = logits.shape[-1]
    per_class = jnp.ones(classes) if weights is None else jnp.asarray(weights, jnp.float32)
    hard = targets.ndim == 1
    distribution = jax.nn.one_hot(targets, classes) if hard else targets
    losses = (_LOSSES[loss.name](loss, logits, distribution) * per_class).sum(-1)
    counts = hard and weights is not None and loss.name != "binary_cross_entropy"
    return losses, per_class[targets] if counts else jnp.ones_like(losses)


def correct_predictions(logits: jax.Array, labels: jax.Array, *, sets: bool) -> jax.Array:
    """bool [N]: whether each image is right.

    Args:
        labels: int [N]; float32 [N, C], distributions of which the largest counts, or with ``sets`` of 0 and 1, where
            exactly these classes have to be found (probability above one half), as in scikit-learn.
    """
    if labels.ndim == 1:
        return logits.argmax(-1) == labels
    if sets:
        return ((logits > 0) == (labels > 0.5)).all(-1)
    return logits.argmax(-1) == labels.argmax(-1)


def class_weights(loss: Loss, labels: np.ndarray, num_classes: int) -> np.ndarray | None:
    """The loss's class weights as float32 [num_classes]; None where all classes count the same.

    Args:
        labels: the training labels, int [n] or float32 [n, num_classes] of 0 and 1; ``balanced`` takes
            n / (num_classes * count) for each class, and 0 for a class without images.

    Raises:
        RecipeError: a list of another length.
    """
    given = loss.class_weights
    if given is None:
        return None
    if given == "balanced":
        counts = count_classes(labels, num_classes)
        return np.where(counts > 0, len(labels) / (num_classes * np.maximum(counts, 1)), 0.0).astype(np.float32)
    if len(given) != num_classes:
        raise RecipeError(f"loss.class_weights: {len(given)} weights for {num_classes} classes; give one for each")
    return np.asarray(given, np.float32)


def _cross_entropy(loss: Any, logits: jax.Array, targets: jax.Array) -> jax.Array:
    return -_smooth(targets, loss.label_smoothing) * jax.nn.log_softmax(logits)


def _focal(loss: Any, logits: jax.Array, targets: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(logits)
    # 1 - p by expm1, and kept from 0, where a power below 1 has no gradient
    others = jnp.maximum(-jnp.expm1(log_probabilities), jnp.finfo(jnp.float32).tiny)
    return -targets * others**loss.gamma * log_probabilities


def _binary_cross_entropy(loss: Any, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean over classes, written as the sum of its shares."""
    return optax.sigmoid_binary_cross_entropy(logits, _smooth(targets, loss.label_smoothing)) / logits.shape[-1]


def _smooth(targets: jax.Array, share: float) -> jax.Array:
    return targets * (1 - share) + share / targets.shape[-1] if share else targets


_LOSSES: dict[str, Callable[[Any, jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "binary_cross_entropy": _binary_cross_entropy,
}
