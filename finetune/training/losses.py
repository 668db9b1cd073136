"""The losses that a recipe can name, and when a prediction counts as correct."""

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
    """The losses of a batch and each image's weight in their mean, which is sum(losses) / sum(weights).

    Args:
        logits: float32 [N, C].
        targets: int [N], or float32 [N, C]: distributions over the classes, or for ``binary_cross_entropy`` the classes
            that each image has, as 0 and 1.
        weights: class weights, float32 [C]. As in PyTorch, the mean is weighted by them where targets are class
            indices, and is over images where they are distributions.

    Returns:
        float32 [N] each.
    """
    classes = logits.shape[-1]
    per_class = jnp.ones(classes) if weights is None else jnp.asarray(weights, jnp.float32)
    indices = targets.ndim == 1
    distribution = jax.nn.one_hot(targets, classes) if indices else targets
    losses = (_LOSSES[loss.name](loss, logits, distribution) * per_class).sum(-1)
    weighted_mean = indices and weights is not None and loss.name != "binary_cross_entropy"
    return losses, per_class[targets] if weighted_mean else jnp.ones_like(losses)


def correct_predictions(logits: jax.Array, labels: jax.Array, *, sets: bool) -> jax.Array:
    """Whether each image is classified correctly, bool [N].

    Args:
        logits: float32 [N, C].
        labels: int [N], or float32 [N, C]: distributions, whose largest class counts, or with ``sets`` 0 and 1.
        sets: labels are sets of classes; correct if exactly these have a probability above one half, as in
            scikit-learn's accuracy of multilabel targets.
    """
    if labels.ndim == 1:
        return logits.argmax(-1) == labels
    if sets:
        return ((logits > 0) == (labels > 0.5)).all(-1)
    return logits.argmax(-1) == labels.argmax(-1)


def class_weights(loss: Loss, labels: np.ndarray | None, num_classes: int) -> np.ndarray | None:
    """The class weights of a loss, float32 [num_classes]; None where all classes have the same weight.

    Args:
        labels: the training labels, int [n] or float32 [n, num_classes] of 0 and 1. ``balanced`` gives each class the
            weight n / (num_classes * count), as in scikit-learn, and 0 to a class without images. None where they are
            not known.

    Raises:
        RecipeError: the number of weights is not the number of classes, or ``balanced`` without labels.
    """
    weights = loss.class_weights
    if weights is None:
        return None
    if weights == "balanced":
        if labels is None:
            raise RecipeError(
                "loss.class_weights: balanced needs the training labels, which are not known here; pass "
                "class_weights=finetune.training.losses.balanced_weights(labels, num_classes)"
            )
        return balanced_weights(labels, num_classes)
    if len(weights) != num_classes:
        raise RecipeError(f"loss.class_weights: {len(weights)} weights for {num_classes} classes; give one for each")
    return np.asarray(weights, np.float32)


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """n / (num_classes * count) of each class, as in scikit-learn, and 0 without images: float32 [num_classes]."""
    counts = count_classes(labels, num_classes)
    return np.where(counts > 0, len(labels) / (num_classes * np.maximum(counts, 1)), 0.0).astype(np.float32)


def _cross_entropy(loss: Any, logits: jax.Array, targets: jax.Array) -> jax.Array:
    return -optax.smooth_labels(targets, loss.label_smoothing) * jax.nn.log_softmax(logits)


def _focal(loss: Any, logits: jax.Array, targets: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(logits)
    # 1 - p, accurate for p near 1, and above 0, where a power below 1 has no finite gradient
    others = jnp.maximum(-jnp.expm1(log_probabilities), jnp.finfo(jnp.float32).tiny)
    return -targets * others**loss.gamma * log_probabilities


def _binary_cross_entropy(loss: Any, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Divided by C, since the caller sums over classes and the loss is the mean."""
    targets = optax.smooth_labels(targets, loss.label_smoothing)
    return optax.sigmoid_binary_cross_entropy(logits, targets) / logits.shape[-1]


_LOSSES: dict[str, Callable[[Any, jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "binary_cross_entropy": _binary_cross_entropy,
}
