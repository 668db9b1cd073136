import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from finetune.evaluation.statistics import compare_paired, expected_calibration_error, macro_f1, wilson_interval


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (10, 10), (3, 7), (883, 899)])
def test_the_interval_is_scipys(successes, count):
    expected = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson_interval(successes, count), [expected.low, expected.high], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("gained", "lost"), [(5, 4), (33, 4), (0, 6), (7, 7)])
def test_mcnemars_test_is_a_sum_of_binomial_terms(gained, lost):
    first = np.array([False] * gained + [True] * lost + [True, False])
    second = np.array([True] * gained + [False] * lost + [True, False])
    result = compare_paired(first, second)
    n, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    assert (result.gained, result.lost) == (gained, lost)
    assert result.p_value == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_models_that_agree_on_every_image_do_not_differ():
    right = np.array([True, False, True])
    assert compare_paired(right, right).p_value == 1.0


def test_the_calibration_error_is_its_definition():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(5, 0.3), 500)
    labels = rng.integers(0, 5, 500)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_a_model_as_right_as_it_is_sure_is_calibrated(share):
    probabilities = np.tile([share, 1 - share], (10, 1))
    labels = (np.arange(10) >= 10 * share).astype(int)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.0, abs=1e-12)


def test_macro_f1_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 4, 50), rng.integers(0, 5, 50)
    assert macro_f1(predictions, labels) == pytest.approx(f1_score(labels, predictions, average="macro"), rel=1e-9)
    several, guesses = rng.integers(0, 2, (50, 4)), rng.integers(0, 2, (50, 4))
    assert macro_f1(guesses, several) == pytest.approx(f1_score(several, guesses, average="macro"), rel=1e-9)
