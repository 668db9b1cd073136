"""Confident learning: which labels are likely wrong (Northcutt, Jiang & Chuang 2021, arXiv:1911.00068).

Everything follows from probabilities by a model that has not learned from the image they are about. A class's threshold
is the mean probability that the images with its label give to it, its mean self-confidence. The confident joint counts,
for each label, the images that reach the threshold of each class; scaled to the number of images with each label, it
estimates how many of them truly are of each class. As many images as that leaves off the diagonal are named for each
label, those with the least self-confidence first ("prune by class", section 3.2 of the paper).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelErrors:
    """Images whose labels are likely wrong, the likeliest first.

    Attributes:
        indices: int [m], of the images.
        suggested: int [m], the most probable of the other classes.
        scores: float64 [m], self-confidence relative to the label's threshold, the least first: 1 is what the images
            with this label have on average.
        joint: float64 [num_classes, num_classes], the estimated share of all images with label i that are of class j;
            its sum is 1.
    """

    indices: np.ndarray
    suggested: np.ndarray
    scores: np.ndarray
    joint: np.ndarray

    @property
    def noise(self) -> float:
        """The estimated share of wrong labels; what the model confuses counts in it."""
        return float(1 - np.trace(self.joint))


def find_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Names as many images of each label as the confident joint estimates to be of other classes.

    An image whose label is the most probable class is never named. Equal scores are in the order of the images.

    Args:
        probabilities: float [n, num_classes], by models that have not learned from the image.
        labels: int [n].
    """
    p = np.asarray(probabilities, np.float64)
    joint = estimate_joint(p, labels)
    score, others = label_scores(p, labels), _without_own(p, labels)
    wrong = joint.sum(1) - np.diag(joint)
    quotas = np.round(wrong * len(labels)).astype(int)
    suspects = np.flatnonzero(others.max(1) > _own(p, labels))
    suspects = suspects[np.argsort(score[suspects], kind="stable")]
    place = np.zeros(len(suspects), int)  # among the suspects of its label
    for label in np.unique(labels[suspects]):
        same = labels[suspects] == label
        place[same] = np.arange(same.sum())
    indices = suspects[place < quotas[labels[suspects]]]
    return LabelErrors(indices, others[indices].argmax(1), score[indices], joint)


def label_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [n]: the probability of each image's label relative to the label's threshold; low is suspicious.

    Relative, so that images of a class that the model is seldom sure of are not suspected for that alone.
    """
    p = np.asarray(probabilities, np.float64)
    return np.asarray(_own(p, labels) / np.maximum(class_thresholds(p, labels)[labels], np.finfo(float).tiny))


def class_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [num_classes]: the mean self-confidence of each label; infinite where no image has it (equation 2)."""
    num_classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=num_classes)
    totals = np.bincount(labels, _own(probabilities, labels), num_classes)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.inf)


def confident_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int [num_classes, num_classes]: how many images with label i confidently are of class j (equation 1).

    An image counts for the most probable of the classes whose threshold it reaches, and not at all where it reaches
    none.
    """
    num_classes = probabilities.shape[1]
    # A mean of equal numbers may differ from them in the last bits.
    reached = probabilities >= class_thresholds(probabilities, labels) * (1 - 1e-12)
    counted = reached.any(1)
    classes = np.where(reached, probabilities, -1.0).argmax(1)
    cells = labels[counted] * num_classes + classes[counted]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def estimate_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [num_classes, num_classes]: the confident joint scaled to the number of images with each label, as shares
    of all images (equation 3).

    Labels none of whose images count are taken to be right.
    """
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    joint = confident_joint(probabilities, labels).astype(float)
    joint[np.diag_indices_from(joint)] += joint.sum(1) == 0
    return np.asarray(joint / joint.sum(1, keepdims=True) * (counts / len(labels))[:, None])


def _own(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(probabilities[np.arange(len(labels)), labels])


def _without_own(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -1.0
    return others
