"""What a model says class by class: precision and recall with their intervals, and which classes it confuses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune.evaluation.metrics import average_precisions
from finetune.evaluation.statistics import wilson_interval


@dataclass(frozen=True)
class ClassResult:
    """One class on test images; what is not defined is None.

    Attributes:
        images: that have the class.
        predicted: images that the model gives it to, rightly or not.
        recall: the share of its images that it is given to, with its 95% interval (Wilson).
        precision: the share of those predicted that have it.
        average_precision: the area under the precision-recall curve; only for images with several labels.
    """

    images: int
    predicted: int
    recall: float | None
    recall_interval: tuple[float, float] | None
    precision: float | None
    f1: float | None
    average_precision: float | None = None


def class_results(predictions: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> list[ClassResult]:
    """One result for each class.

    Args:
        predictions, labels: int [n], or 0 and 1 of shape [n, num_classes] where images have several labels.
        scores: float [n, num_classes]; their order makes the average precision.
    """
    classes = scores.shape[1]
    if labels.ndim == 1:
        right, has, given = (
            np.bincount(values, minlength=classes) for values in (labels[predictions == labels], labels, predictions)
        )
        precisions: list[float | None] = [None] * classes
    else:
        right, has, given = (values.sum(0).astype(int) for values in (predictions * labels, labels, predictions))
        precisions = average_precisions(labels, scores)
    counts = zip(right.tolist(), has.tolist(), given.tolist(), precisions, strict=True)
    return [_result(*each) for each in counts]


def _result(right: int, has: int, given: int, average_precision: float | None) -> ClassResult:
    return ClassResult(
        has,
        given,
        right / has if has else None,
        wilson_interval(right, has) if has else None,
        right / given if given else None,
        2 * right / (has + given) if has + given else None,
        average_precision,
    )


def confusion_matrix(predictions: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """int [k, k]: how many images of each of k classes (row) were taken for each of them (column).

    Args:
        predictions, labels: int [n].
        classes: int [k].
    """
    place = np.full(1 + max(predictions.max(), labels.max(), classes.max()), -1)
    place[classes] = np.arange(len(classes))
    rows, columns = place[labels], place[predictions]
    shown = (rows >= 0) & (columns >= 0)
    pairs = rows[shown] * len(classes) + columns[shown]
    return np.bincount(pairs, minlength=len(classes) ** 2).reshape(len(classes), len(classes))


def most_confused(predictions: np.ndarray, labels: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """(class, what it was taken for, number of images) of the most frequent confusions, in descending order.

    Args:
        predictions, labels: int [n].
    """
    wrong = predictions != labels
    pairs, numbers = np.unique(np.stack([labels[wrong], predictions[wrong]], 1), axis=0, return_counts=True)
    order = np.argsort(-numbers, kind="stable")[:count]
    return [(*pairs[i].tolist(), int(numbers[i])) for i in order]


def most_mistaken(predictions: np.ndarray, labels: np.ndarray, num_classes: int, count: int) -> np.ndarray:
    """int [count], ascending: the classes that most mistakes are about, as the true one or as the answer."""
    wrong = predictions != labels
    mistakes = sum(np.bincount(values[wrong], minlength=num_classes) for values in (predictions, labels))
    return np.sort(np.argsort(-np.asarray(mistakes), kind="stable")[:count])


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the images about which the model is most confidently wrong, the worst first.

    An image with one label is as wrong as the probability of the class that it is taken for; one with several as the
    probability of a class that it does not have, or the lack of one that it has, whichever is larger.

    Args:
        probabilities: [n, num_classes]; images for which they are not finite come last.
        labels: int [n], or 0 and 1 of shape [n, num_classes].
    """
    if labels.ndim == 1:
        wrong = np.where(probabilities.argmax(1) != labels, probabilities.max(1), 0.0)
    else:
        wrong = np.abs(probabilities - labels).max(1)
        wrong = np.where(wrong <= 0.5, 0.0, wrong)
    wrong = np.nan_to_num(wrong, nan=np.finfo(np.float64).tiny)
    order = np.argsort(-wrong, kind="stable")[:count]
    return order[wrong[order] > 0]
