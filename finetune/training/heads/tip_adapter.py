"""Tip-Adapter: Training-free CLIP-Adapter for Better Vision-Language Modeling (Zhang et al. 2022, arXiv:2111.03930)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from finetune.models.heads import cache_logits, unit_length
from finetune.models.zero_shot import TextClassifier

ALPHA, BETA = 1.17, 1.0  # where the published code starts on ImageNet
# Published grids go from 0.1 to another limit for each data set, between 3 and 30; these are DTD's.
ALPHAS = tuple(round(0.1 + i * (13 - 0.1) / 20, 4) for i in range(20))
BETAS = tuple(round(0.1 + i * (13 - 0.1) / 200, 4) for i in range(200))


@dataclass(frozen=True)
class TipAdapterReport:
    """How a cache was fitted.

    Attributes:
        alpha: weight of the cache.
        beta: sharpness of the similarities.
        accuracy: on the validation images, in [0, 1]; None where nothing was chosen on them.
    """

    alpha: float
    beta: float
    accuracy: float | None


def fit_tip_adapter(
    features: np.ndarray | jax.Array,
    labels: np.ndarray,
    num_classes: int,
    text: TextClassifier,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    validation: tuple[np.ndarray | jax.Array, np.ndarray] | None = None,
    epochs: int = 0,
    learning_rate: float = 1e-3,
    batch_size: int = 256,
    seed: int = 0,
) -> tuple[dict[str, dict[str, jax.Array]], TipAdapterReport]:
    """Variables of a :class:`~finetune.models.heads.TipAdapterHead`, and what was chosen for them.

    Args:
        features: float32 [n, d], pooled features before the projection.
        labels: int [n].
        alpha: weight of the cache. None takes the value with the best accuracy on ``validation``, the smallest of
            several, or without validation images the published 1.17.
        beta: sharpness of the similarities; likewise, or 1. Fine-tuning comes first, at the given values or these.
        validation: features and labels to choose alpha and beta on.
        epochs: of fine-tuning of the keys (Tip-Adapter-F): AdamW on the cross-entropy with PyTorch's weight decay of
            0.01 and the published epsilon of 1e-4, on a cosine schedule. The keys of the last epoch are taken; the
            published code takes those with the best test accuracy. It also draws random views of the images; here a
            training image meets its own key.
        learning_rate: the first one of the schedule.
        batch_size: images in a step.
        seed: of their order.
    """
    start = ALPHA if alpha is None else alpha, BETA if beta is None else beta
    y = jnp.asarray(labels, jnp.int32)
    keys = _embed(features, text)
    if epochs:
        batches = _batches(len(y), batch_size, epochs, seed)
        keys = _fine_tune(keys, y, text.classes, text.scale, *start, batches, learning_rate)
    accuracy = None
    if validation is not None and None in (alpha, beta):
        alphas, betas = (ALPHAS if alpha is None else (alpha,)), (BETAS if beta is None else (beta,))
        images, classes = _embed(validation[0], text), jnp.asarray(validation[1], jnp.int32)
        grids = np.asarray(alphas, np.float32), np.asarray(betas, np.float32)
        accuracies = np.asarray(_search(images, classes, keys, y, text.classes, text.scale, *grids))
        i, j = np.unravel_index(accuracies.argmax(), accuracies.shape)
        start, accuracy = (alphas[j], betas[i]), float(accuracies[i, j])
    report = TipAdapterReport(*start, accuracy)
    scalars = {"scale": text.scale, "alpha": report.alpha, "beta": report.beta}
    params = {"projection": text.projection, "text": text.classes, "keys": keys}
    params |= {name: jnp.asarray(value, jnp.float32) for name, value in scalars.items()}
    return {"params": params, "memory": {"labels": y}}, report


def _embed(features: np.ndarray | jax.Array, text: TextClassifier) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return unit_length(jnp.asarray(features, jnp.float32) @ text.projection)


def _batches(images: int, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """Indices of the images of each step, int32 [steps, batch_size]; -1 fills up the last batch of an epoch."""
    size = min(batch_size, images)
    rng = np.random.default_rng(seed)
    orders = np.full((epochs, -(-images // size) * size), -1, np.int32)
    orders[:, :images] = [rng.permutation(images) for _ in range(epochs)]
    return orders.reshape(-1, size)


@jax.jit
def _fine_tune(
    embeddings: jax.Array,
    labels: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    alpha: jax.Array,
    beta: jax.Array,
    batches: jax.Array,
    learning_rate: jax.Array,
) -> jax.Array:
    """The keys that start at the embeddings, [n, e], after a step on each of the batches."""
    schedule = optax.cosine_decay_schedule(1.0, len(batches))
    optimizer = optax.adamw(lambda step: learning_rate * schedule(step), eps=1e-4, weight_decay=0.01)

    def loss(keys: jax.Array, batch: jax.Array) -> jax.Array:
        images, counted = embeddings[batch], batch >= 0
        cache = cache_logits(images @ keys.T, labels, beta, text.shape[1])
        losses = optax.softmax_cross_entropy_with_integer_labels(scale * images @ text + alpha * cache, labels[batch])
        return (losses * counted).sum() / counted.sum()

    def step(carry: tuple[jax.Array, Any], batch: jax.Array) -> tuple[tuple[jax.Array, Any], None]:
        keys, state = carry
        updates, state = optimizer.update(jax.grad(loss)(keys, batch), state, keys)
        return (optax.apply_updates(keys, updates), state), None

    with jax.default_matmul_precision("highest"):
        (keys, _), _ = jax.lax.scan(step, (embeddings, optimizer.init(embeddings)), batches)
    return keys


@jax.jit
def _search(
    embeddings: jax.Array,
    targets: jax.Array,
    keys: jax.Array,
    labels: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    alphas: jax.Array,
    betas: jax.Array,
) -> jax.Array:
    """The accuracy on images with known classes, ``targets``, for each beta and alpha, float32 [betas, alphas]."""
    with jax.default_matmul_precision("highest"):
        zero_shot, affinities = scale * embeddings @ text, embeddings @ keys.T

        def by_alpha(beta: jax.Array) -> jax.Array:
            cache = cache_logits(affinities, labels, beta, text.shape[1])
            return jax.lax.map(lambda alpha: ((zero_shot + alpha * cache).argmax(axis=1) == targets).mean(), alphas)

        return jax.lax.map(by_alpha, betas)
