"""Reliability: how often a model is right where it says how sure it is, as a diagram shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune.evaluation.verdict import probabilities
from finetune.export.confidence import Confidence

Bins = list[list[float]]


def reliability_bins(shares: np.ndarray, labels: np.ndarray, bins: int = 15) -> Bins:
    """[mean confidence, share that is right, number] of each bin that is not empty.

    The bins are those of the expected calibration error: by the probability of the most probable class. Where images
    have several labels, each pair of an image and a class counts on its own: its probability, and whether the image
    has the class.

    Args:
        shares: [n, num_classes]; without any that are not finite.
        labels: int [n], or 0 and 1 of shape [n, num_classes].
    """
    shares = shares.astype(np.float64)
    confidence = shares.max(1) if labels.ndim == 1 else shares.ravel()
    right = shares.argmax(1) == labels if labels.ndim == 1 else labels.ravel() > 0
    groups = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # the upper edge belongs to a bin
    counts = np.bincount(groups, minlength=bins)
    means, rights = (np.bincount(groups, values, bins) for values in (confidence, right))
    return [[float(means[i] / counts[i]), float(rights[i] / counts[i]), int(counts[i])] for i in np.flatnonzero(counts)]


def describe_reliability(
    confidence: Confidence, splits: Mapping[str, tuple[np.ndarray | None, np.ndarray]]
) -> dict[str, Any]:
    """The bins of each split ``before`` and ``after`` calibration; a split without finite logits is left out.

    Args:
        splits: logits before calibration, and labels, by name of the split.
    """
    return {
        name: {
            "before": reliability_bins(probabilities(logits, labels), labels),
            "after": reliability_bins(probabilities(confidence.calibrate(logits), labels), labels),
        }
        for name, (logits, labels) in splits.items()
        if logits is not None and np.isfinite(logits).all()
    }
