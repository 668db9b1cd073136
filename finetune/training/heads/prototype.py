"""The nearest class mean as a linear head (Mensink et al. 2013, "Distance-based image classification: generalizing to
new classes at near-zero cost"; Snell et al. 2017, "Prototypical networks for few-shot learning", arXiv:1703.05175)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from finetune.models.heads import unit_length

_NEVER = 1e4  # how far below the others the logit of a class without images is
_RANGE = 1e3  # of the inverse temperature, both ways from where the scores have unit spread
_BISECTIONS = 20


def fit_prototype(
    features: np.ndarray | jax.Array,
    labels: np.ndarray,
    num_classes: int,
    *,
    distance: Literal["cosine", "euclidean"] = "cosine",
) -> tuple[jax.Array, jax.Array]:
    """A linear head that predicts the class with the nearest mean; its logits are minus the distances, up to a term
    that all classes share.

    ``euclidean`` is softmax(-t / 2 ||x - c||^2), which is linear in x: weights t c and bias -t / 2 ||c||^2. ``cosine``
    compares directions: c is the normalized mean of unit vectors, and since a linear head cannot normalize x, logits
    are t times the cosines times the length of x over the mean length.

    The inverse temperature t has the largest likelihood of the training images, each held out of its class's mean; it
    is finite even where classes are separable, since targets are smoothed as in Platt's scaling (Platt 1999). Images
    that are alone in their class take no part; if all are, t is the inverse of the scores' standard deviation.

    Args:
        features: float32 [n, d].
        labels: int [n]. A class without images is never predicted: whatever the image, its logit is 1e4 below the
            largest or more.

    Returns:
        Kernel, float32 [d, num_classes], and bias, float32 [num_classes].
    """
    x, y = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)
    return _fit(x, y, num_classes, distance == "cosine")


@partial(jax.jit, static_argnames=("num_classes", "cosine"))
def _fit(x: jax.Array, labels: jax.Array, num_classes: int, cosine: bool) -> tuple[jax.Array, jax.Array]:
    with jax.default_matmul_precision("highest"):
        points = unit_length(x) if cosine else x
        one_hot = jax.nn.one_hot(labels, num_classes)
        counts, sums = one_hot.sum(axis=0)[:, None], one_hot.T @ points
        present = counts[:, 0] > 0
        centers = _center(sums, counts, cosine)
        # Any origin gives the same probabilities. With the mean of the centers, little is lost to rounding, and an
        # image's largest score is at least the mean of its scores, which no longer depends on the image.
        origin = centers.sum(axis=0) / present.sum()
        centers = jnp.where(present[:, None], centers - origin, 0.0)
        held_out = _center(sums[labels] - points, counts[labels] - 1, cosine) - origin
        mean_length = jnp.linalg.norm(x, axis=1).mean()
        inputs = x / mean_length if cosine else x - origin
        offsets = _offsets(centers, cosine)
        scores = inputs @ centers.T - offsets
        own = (inputs * held_out).sum(axis=1) - _offsets(held_out, cosine)
        scores = jnp.where(one_hot > 0, own[:, None], scores)
        t = _inverse_temperature(scores, one_hot, present, counts[labels, 0] > 1)
        kernel = t * centers.T / (mean_length if cosine else 1.0)
        bias = -t * (offsets if cosine else offsets + centers @ origin)
        return kernel, jnp.where(present, bias, -t * offsets.max() - _NEVER)


def _center(sums: jax.Array, counts: jax.Array, cosine: bool) -> jax.Array:
    return unit_length(sums) if cosine else sums / jnp.maximum(counts, 1)


def _offsets(centers: jax.Array, cosine: bool) -> jax.Array:
    return jnp.zeros(len(centers)) if cosine else (centers**2).sum(axis=1) / 2


def _inverse_temperature(scores: jax.Array, one_hot: jax.Array, present: jax.Array, known: jax.Array) -> jax.Array:
    """The factor of the scores with the least mean cross-entropy, by bisection of its logarithm: the loss is convex.

    Args:
        scores: float32 [n, C].
        present: bool [C], the classes that there are; ``known``: bool [n], the images to count.
    """
    classes, images = present.sum(), known.sum()
    centred = jnp.where(present, scores - jnp.where(present, scores, 0.0).sum(axis=1, keepdims=True) / classes, 0.0)
    unit = 1 / jnp.maximum(jnp.sqrt((centred**2).sum() / (len(scores) * classes)), 1e-12)
    smoothing = 1 / (images + 2)
    targets = jnp.where(present, (1 - smoothing) * one_hot + smoothing / classes, 0.0)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        probabilities = jax.nn.softmax(jnp.where(present, unit * jnp.exp(middle) * centred, -jnp.inf))
        slope = jnp.where(known, ((probabilities - targets) * centred).sum(axis=1), 0.0).sum()
        return jnp.where(slope < 0, middle, low), jnp.where(slope < 0, high, middle)

    limit = jnp.log(jnp.asarray(_RANGE, jnp.float32))
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (-limit, limit))
    return jnp.where(images > 0, unit * jnp.exp((low + high) / 2), unit)
