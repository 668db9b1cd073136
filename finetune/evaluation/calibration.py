"""Calibration: probabilities that are right as often as they say, fitted on images that were not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.evaluation.novelty import score_all
from finetune.evaluation.statistics import expected_calibration_error, macro_f1
from finetune.evaluation.verdict import probabilities
from finetune.export.confidence import SET_KINDS, Confidence, set_scores
from finetune.export.novelty import Novelty
from finetune.recipe.recipe import CalibrationMethod


def fit_confidence(
    logits: np.ndarray,
    labels: np.ndarray,
    method: CalibrationMethod = "temperature",
    novelty: Novelty | None = None,
    features: np.ndarray | None = None,
) -> Confidence:
    """What the validation images say of a model.

    Args:
        logits: float32 [n, num_classes], finite.
        labels: int [n], or 0 and 1 of shape [n, num_classes].
        method: ``temperature``, one scale for all logits, which changes no decision between classes; ``vector``, a
            scale and a bias of each class; or ``none``.
        novelty: the score that tells what is unknown; by default the energy.
        features: float32 [n, num_features] of the same images, where that score reads them.
    """
    novelty = novelty or Novelty()
    novelties = np.sort(score_all(novelty, logits, features))
    scale, bias = _fit_scale(logits.astype(np.float64), labels, method)
    calibrated = probabilities(logits * scale + bias, labels)
    if labels.ndim == 2:
        thresholds = choose_thresholds(calibrated, labels)
        return Confidence(scale, bias, {}, novelties, thresholds=thresholds, novelty=novelty)
    own = np.arange(len(labels)), labels
    scores: dict[str, np.ndarray] = {
        kind: np.sort(set_scores(calibrated, kind)[own]).astype(np.float32) for kind in SET_KINDS
    }
    certainties, right = calibrated.max(1).astype(np.float32), calibrated.argmax(1) == labels
    return Confidence(scale, bias, scores, novelties, certainties, right, novelty=novelty)


def choose_thresholds(shares: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each class the probability from which on an image is of it: the one of the highest F1; float32 [num_classes].

    It lies halfway between two of the images. A class that no image has, or that all have, keeps 0.5.

    Args:
        shares: probabilities [n, num_classes].
        labels: 0 and 1, of the same shape.
    """
    thresholds = np.full(shares.shape[1], 0.5, np.float32)
    for i in np.flatnonzero(labels.any(0) & ~labels.all(0)):
        order = np.argsort(-shares[:, i], kind="stable")
        values, hits = shares[order, i], np.cumsum(labels[order, i])
        f1 = 2 * hits / (np.arange(1, len(order) + 1) + hits[-1])
        ends = np.append(values[:-1] > values[1:], True)  # equal values are of a class together
        last = int(np.argmax(np.where(ends, f1, -1)))
        thresholds[i] = (values[last] + (values[last + 1] if last + 1 < len(values) else 0.0)) / 2
    return thresholds


def _fit_scale(logits: np.ndarray, labels: np.ndarray, method: CalibrationMethod) -> tuple[np.ndarray, np.ndarray]:
    """The scale and bias of the least cross-entropy (Guo et al. 2017, arXiv:1706.04599, section 4.2), float32.

    A standard normal prior on the bias and on the logarithm of the scale, which weighs as much as one image, keeps them
    finite where all validation images are right, and near 0 and 1 where there are few.
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    count, classes = logits.shape
    if method == "none":
        return np.ones(1, np.float32), np.zeros(1, np.float32)
    width = 1 if method == "temperature" else classes
    targets = np.eye(classes)[labels] if labels.ndim == 1 else labels

    def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
        scale = np.exp(params[:width])
        scaled = logits * scale + (params[width:] if method == "vector" else 0.0)
        normalizer = logsumexp(scaled, axis=1).sum() if labels.ndim == 1 else np.logaddexp(0, scaled).sum()
        value = (normalizer - (scaled * targets).sum() + 0.5 * (params**2).sum()) / count
        residuals = probabilities(scaled, labels) - targets
        slopes = (residuals * logits).sum(0)
        if method == "vector":
            return value, (np.concatenate([scale * slopes, residuals.sum(0)]) + params) / count
        return value, (scale * slopes.sum() + params) / count

    start = np.zeros(width if method == "temperature" else 2 * classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-12, "gtol": 1e-9}).x
    bias = found[width:] if method == "vector" else np.zeros(1)
    return np.exp(found[:width]).astype(np.float32), bias.astype(np.float32)


def describe_calibration(confidence: Confidence, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Expected calibration error (of 15 bins) and loss of the same images before and after, for images with one label.

    Args:
        logits: before calibration.
    """
    facts: dict[str, Any] = {"n": len(labels)}
    for when, values in (("before", logits), ("after", confidence.calibrate(logits))):
        shares = probabilities(values, labels)
        own = shares[np.arange(len(labels)), labels]
        facts[f"expected_calibration_error_{when}"] = expected_calibration_error(shares, labels)
        facts[f"loss_{when}"] = float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())
    return facts


def describe_thresholds(confidence: Confidence, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Macro F1 of images with several labels at one half, and at the thresholds that validation images chose.

    Args:
        logits: before calibration.
    """
    shares = probabilities(confidence.calibrate(logits), labels)
    return {
        "thresholds": confidence.thresholds.tolist(),
        "macro_f1_before": macro_f1((logits > 0).astype(labels.dtype), labels),
        "macro_f1_after": macro_f1((shares > confidence.thresholds).astype(labels.dtype), labels),
    }
