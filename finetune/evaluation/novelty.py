"""Scores of novelty, fitted on training images."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from finetune.data.labeled_images import Split
from finetune.export.novelty import Novelty, NoveltyKind
from finetune.models.heads import unit_length

MOST_IMAGES = 5000  # of training, that are kept or fitted on
_ROWS = 1024  # scored at a time


def fit_novelty(kind: NoveltyKind, features: np.ndarray, labels: np.ndarray) -> Novelty:
    """
    Args:
        features: float32 [n, num_features] of training images, which the head reads.
        labels: int [n], or 0 and 1 of shape [n, num_classes], whose images are one group.
    """
    if kind == "energy":
        return Novelty()
    if kind == "knn":
        return Novelty("knn", {"bank": np.asarray(unit_length(jnp.asarray(features)))})
    return Novelty("mahalanobis", _fit_gaussians(features.astype(np.float64), labels))


def fit_novelty_to(
    kind: NoveltyKind, train: Split, validation: Split, features: Callable[[Split], np.ndarray]
) -> tuple[Novelty, np.ndarray | None]:
    """The score, fitted to training images, and features of the validation images where it reads them.

    Args:
        features: of images, float32 [n, num_features], which the head reads.
    """
    if kind == "energy":
        return Novelty(), None
    shown = train.take(spread(len(train)))
    return fit_novelty(kind, features(shown), shown.labels), features(validation)


def _fit_gaussians(features: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """One Gaussian for each class, of a common covariance, shrunk where images are few (Ledoit and Wolf 2004)."""
    from sklearn.covariance import LedoitWolf

    groups = labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
    present, group = np.unique(groups, return_inverse=True)
    means = np.stack([features[group == i].mean(0) for i in range(len(present))])
    precision = LedoitWolf(assume_centered=True).fit(features - means[group]).precision_
    whitening = np.linalg.cholesky((precision + precision.T) / 2)
    return {"means": (means @ whitening).astype(np.float32), "whitening": whitening.astype(np.float32)}


def score_all(novelty: Novelty, logits: np.ndarray, features: np.ndarray | None) -> np.ndarray:
    """float32 [n], of as many images as there are."""
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(logits), _ROWS):
        rows = slice(start, start + _ROWS)
        parts.append(np.asarray(novelty.score(logits[rows], None if features is None else features[rows]), np.float32))
    return np.concatenate(parts)


def spread(count: int) -> np.ndarray:
    """Positions of at most so many of ``count`` images, evenly spread: images are often in the order of classes."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_IMAGES)).astype(np.int64))
