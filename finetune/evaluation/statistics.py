"""What test results say beyond their value: intervals, calibration, and whether two models differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
    """The 95% confidence interval of a proportion (Wilson 1927)."""
    z, share = 1.959963984540054, successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """The mean distance between confidence and accuracy (Guo et al. 2017, arXiv:1706.04599, equation 3).

    Images are grouped by the probability of their most probable class, in bins of equal width; each bin counts by its
    number of images.

    Args:
        probabilities: [n, num_classes].
        labels: int [n].
    """
    confidence, correct = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == labels
    groups = np.minimum(np.ceil(confidence * bins).astype(int) - 1, bins - 1)  # the upper edge belongs to a bin
    gaps = np.bincount(groups, correct - confidence, bins)
    return float(np.abs(gaps).sum() / len(labels))


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the classes' F1 scores, of the classes that are the label or the prediction of some image.

    Args:
        predictions, labels: int [n], or 0 and 1 of shape [n, num_classes] where images have several labels.
    """
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same images.

    Attributes:
        gained: images that only the second model gets right.
        lost: those that only the first does.
        p_value: of McNemar's exact test (two-sided): how likely so uneven a split of these images is, if a coin decided
            each of them.
    """

    gained: int
    lost: int
    p_value: float


def compare_paired(first: np.ndarray, second: np.ndarray) -> PairedTest:
    """McNemar's exact test (McNemar 1947).

    Args:
        first, second: bool [n]: whether each model is right about each image.
    """
    from scipy.stats import binomtest

    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return PairedTest(gained, lost, p_value)
