import numpy as np
import pytest

from finetune.evaluation.calibration import fit_confidence
from finetune.evaluation.reliability import describe_reliability, reliability_bins
from finetune.evaluation.statistics import expected_calibration_error
from finetune.evaluation.verdict import probabilities


@pytest.fixture
def images():
    """(logits that are twice as sure as they should be, labels)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 4)).astype(np.float32)
    labels = (probabilities(logits, np.zeros(1)).cumsum(1) > rng.random((2000, 1))).argmax(1)
    return 2 * logits, labels


def test_the_bins_are_those_of_the_calibration_error(images):
    logits, labels = images
    shares = probabilities(logits, labels)
    bins = reliability_bins(shares, labels)
    gaps = sum(count * abs(confidence - right) for confidence, right, count in bins)
    assert gaps / len(labels) == pytest.approx(expected_calibration_error(shares, labels))
    assert sum(count for *_, count in bins) == len(labels)


def test_calibration_moves_the_bins_to_the_diagonal(images):
    logits, labels = images
    splits = {"validation": (logits, labels), "test": (None, labels), "broken": (logits * np.nan, labels)}
    described = describe_reliability(fit_confidence(logits, labels), splits)
    assert described.keys() == {"validation"}
    gap = {when: sum(n * abs(a - b) for a, b, n in bins) for when, bins in described["validation"].items()}
    assert gap["after"] < gap["before"] / 3


def test_with_several_labels_each_pair_of_image_and_class_counts():
    shares = np.array([[0.9, 0.1], [0.9, 0.1]])
    labels = np.array([[1, 0], [0, 0]])
    (low, low_share, low_count), (high, high_share, high_count) = reliability_bins(shares, labels)
    assert (low, low_share, low_count) == pytest.approx((0.1, 0.0, 2))
    assert (high, high_share, high_count) == pytest.approx((0.9, 0.5, 2))
