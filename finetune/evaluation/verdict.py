"""The verdict of a run: what each step came to on the same test images, and what that says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from finetune.evaluation.metrics import Evaluation, average_precisions
from finetune.evaluation.statistics import compare_paired, expected_calibration_error, macro_f1, wilson_interval

INTERPOLATED = "interpolated"  # name of the step between the weights before and after fine-tuning
_LEVEL = 0.05  # of the test: from here on, a difference may be chance


def describe_result(evaluation: Evaluation, labels: np.ndarray) -> dict[str, Any]:
    """Plain JSON values: what :meth:`Evaluation.to_json` gives, ``accuracy_interval`` (95%, Wilson), ``macro_f1`` and
    ``expected_calibration_error`` (of 15 bins), or for images with several labels ``average_precision``, a list with
    that of each class, None where no image is of it.

    Args:
        evaluation: with its logits.
        labels: of the same images.
    """
    assert evaluation.logits is not None
    facts = evaluation.to_json()
    correct = round(evaluation.accuracy * evaluation.n)
    facts["accuracy_interval"] = list(wilson_interval(correct, evaluation.n))
    facts["macro_f1"] = macro_f1(predicted(evaluation.logits, labels), labels)
    if labels.ndim == 1:
        shares = probabilities(evaluation.logits, labels)
        finite = bool(np.isfinite(shares).all())
        facts["expected_calibration_error"] = expected_calibration_error(shares, labels) if finite else None
    else:
        facts["average_precision"] = average_precisions(labels, evaluation.logits)
    return facts


def compare_results(before: str, first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """McNemar's test of logits [n, num_classes] against those of the step ``before``."""
    right = [is_right(predicted(logits, labels), labels) for logits in (first, second)]
    return {"before": before, **asdict(compare_paired(*right))}


def conclude(
    results: Sequence[Mapping[str, Any]], kept: str, *, chosen: bool, interpolation: Mapping[str, Any] | None = None
) -> str:
    """Sentences for a person: did the last stage help, and what was made of it; and whose weights are kept.

    Args:
        results: those of a run, in order.
        kept: name of the step whose weights are kept.
        chosen: validation images decided that.
        interpolation: what the summary says of it.
    """
    last = [result for result in results if result["name"] != INTERPOLATED][-1]
    sentences = [_describe_change(last)] if "paired" in last else []
    if interpolation:
        (first, second), share = interpolation["between"], interpolation["best"]
        if 0 < share < 1:
            sentences.append(_describe_change(results[-1]))
        else:
            best = second if share else first
            sentences.append(f"{INTERPOLATED}: no mixture of {first} and {second} is better on validation than {best}.")
    if chosen:
        sentences.append(f"Kept: {kept}, the best on the validation images.")
    elif len(results) > 1:
        sentences.append(f"Kept: {kept}, the last; without validation images nothing was chosen.")
    return " ".join(sentences)


def _describe_change(result: Mapping[str, Any]) -> str:
    test, name = result["paired"], result["name"]
    points = 100 * (test["gained"] - test["lost"]) / result["n"]
    numbers = f"{points:+.1f} points of accuracy over {test['before']} (p = {test['p_value']:.2g})"
    if test["p_value"] >= _LEVEL:
        return f"{name}: {numbers}, no difference that {result['n']:,} test images can show."
    return f"{name} {'helped' if points > 0 else 'hurt'}: {numbers}."


def predicted(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The classes that logits [n, num_classes] say, in the form of the labels."""
    return logits.argmax(1) if labels.ndim == 1 else (logits > 0).astype(labels.dtype)


def is_right(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool [n]; where images have several labels, all of them have to be right."""
    same = predictions == labels
    return same if labels.ndim == 1 else same.all(1)


def probabilities(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [n, num_classes], by softmax, or by sigmoid where images have several labels."""
    from scipy.special import expit, softmax

    logits = logits.astype(np.float64)
    return softmax(logits, axis=1) if labels.ndim == 1 else expit(logits)
