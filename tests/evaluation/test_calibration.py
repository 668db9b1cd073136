import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import f1_score

from finetune.evaluation.calibration import (
    choose_thresholds,
    describe_calibration,
    describe_thresholds,
    fit_confidence,
)
from finetune.export.confidence import SET_KINDS, Confidence, set_scores


def sample(n=4000, classes=5, sharpness=2.0, seed=0):
    """Logits that are ``sharpness`` times too large, and labels drawn from the true probabilities."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (n, classes))
    labels = np.array([rng.choice(classes, p=p) for p in softmax(true, axis=1)])
    return (sharpness * true).astype(np.float32), labels


def test_the_temperature_is_found():
    confidence = fit_confidence(*sample())
    assert confidence.scale == pytest.approx([0.5], abs=0.02)
    assert confidence.bias == [0]


def test_vector_scaling_finds_each_classes_scale_and_bias():
    logits, labels = sample(n=20_000)
    scale, bias = np.array([0.5, 1, 2, 1, 1]), np.array([0.5, 0, -0.5, 0, 0])
    confidence = fit_confidence((logits / 2 - bias) / scale, labels, "vector")
    np.testing.assert_allclose(confidence.scale, scale, rtol=0.1)
    np.testing.assert_allclose(confidence.bias - confidence.bias.mean(), bias, atol=0.1)


def test_calibration_errors_fall_on_images_that_were_not_fitted():
    facts = describe_calibration(fit_confidence(*sample()), *sample(seed=1))
    assert facts["expected_calibration_error_after"] < 0.03 < facts["expected_calibration_error_before"]
    assert facts["loss_after"] < facts["loss_before"]


@pytest.mark.parametrize("method", ["temperature", "vector"])
@pytest.mark.parametrize("n", [3, 20])
def test_few_images_never_make_their_own_loss_worse(n, method):
    logits, labels = sample(n)
    facts = describe_calibration(fit_confidence(logits, labels, method), logits, labels)
    assert facts["loss_after"] <= facts["loss_before"] + 1e-6


def test_images_that_are_all_right_give_a_finite_scale():
    logits = np.eye(4, dtype=np.float32)[np.arange(40) % 4] * 8
    assert 1 <= fit_confidence(logits, np.arange(40) % 4).scale[0] < 5


def test_none_leaves_probabilities_as_they_are():
    logits, labels = sample(100)
    np.testing.assert_array_equal(fit_confidence(logits, labels, "none").calibrate(logits), logits)


def test_several_labels_are_calibrated_and_have_no_sets():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 1, (5000, 3))
    labels = (rng.random((5000, 3)) < 1 / (1 + np.exp(-true))).astype(np.float32)
    confidence = fit_confidence((3 * true).astype(np.float32), labels)
    assert confidence.scale == pytest.approx([1 / 3], rel=0.1)
    assert confidence.scores == {}


@pytest.mark.parametrize("kind", SET_KINDS)
def test_sets_cover_what_was_asked_for(kind):
    covered = []
    for seed in range(20):
        confidence = fit_confidence(*sample(500, seed=seed))
        logits, labels = sample(1000, seed=100 + seed)
        members = confidence.sets(softmax(confidence.calibrate(logits), axis=1), 0.9, kind)
        covered.append(members[np.arange(1000), labels].mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.015)


def test_the_scores_are_those_of_the_papers():
    probabilities = np.array([[0.5, 0.2, 0.3]])
    np.testing.assert_allclose(set_scores(probabilities, "lac"), [[0.5, 0.8, 0.7]])
    np.testing.assert_allclose(set_scores(probabilities, "aps"), [[0.5, 1.0, 0.8]])
    many = np.full((1, 10), 0.1)
    expected = np.cumsum(many, axis=1) + 0.01 * np.maximum(np.arange(1, 11) - 5, 0)
    np.testing.assert_allclose(set_scores(many, "raps"), expected)


def test_the_threshold_is_the_corrected_quantile():
    scores = np.linspace(0, 1, 9, dtype=np.float32)
    confidence = Confidence(np.ones(1), np.zeros(1), {"lac": scores}, scores)
    assert confidence.threshold(0.9) == 1.0  # the ninth of nine
    assert confidence.threshold(0.5) == 0.5
    assert confidence.threshold(0.95) == np.inf
    assert confidence.coverage_range(0.95) == (1.0, 1.0)
    low, high = confidence.coverage_range(0.5)
    assert low < 0.5 < high


def test_confidence_survives_json():
    confidence = fit_confidence(*sample(50), "vector")
    again = Confidence.from_json(confidence.to_json(), 5, {})
    np.testing.assert_array_equal(again.scale, confidence.scale)
    np.testing.assert_array_equal(again.novelties, confidence.novelties)
    assert again.threshold(0.9, "aps") == confidence.threshold(0.9, "aps")
    assert again.acceptance_threshold(0.5) == confidence.acceptance_threshold(0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": [1.0, 2.0]},
        {"scores": {"other": [0.1]}},
        {"novelties": [[1.0]]},
        {"right": [True]},
        {"thresholds": [0.5]},
        {"novelty": "other"},
        {"novelty": "knn"},
    ],
)
def test_a_damaged_description_is_refused(change):
    with pytest.raises(ValueError, match="confidence|novelty"):
        Confidence.from_json({**fit_confidence(*sample(50)).to_json(), **change}, 5, {})


def test_what_is_accepted_is_wrong_as_seldom_as_asked_for():
    kept = []
    for seed in range(20):
        confidence = fit_confidence(*sample(1000, seed=seed))
        logits, labels = sample(2000, seed=100 + seed)
        shares = softmax(confidence.calibrate(logits), axis=1)
        accepted = shares.max(1) >= confidence.acceptance_threshold(0.3)
        assert 0.1 < accepted.mean() < 0.9
        kept.append((shares.argmax(1) != labels)[accepted].mean() <= 0.3)
    assert sum(kept) >= 18


def test_with_few_images_or_a_hopeless_model_nothing_is_accepted():
    assert fit_confidence(*sample(5)).acceptance_threshold(0.01) == np.inf
    logits, labels = sample(500)
    assert fit_confidence(-logits, labels).acceptance_threshold(0.05) == np.inf


def test_a_model_that_is_always_right_is_accepted_as_far_as_the_binomial_bound_allows():
    labels = np.arange(100) % 5
    confidence = fit_confidence(np.eye(5, dtype=np.float32)[labels] * 9, labels)
    tries = 7  # of the search among 100 images
    assert confidence.acceptance_threshold(1 - (0.1 / tries) ** (1 / 100) + 1e-6) < 1
    assert confidence.acceptance_threshold(1 - (0.1 / tries) ** (1 / 100) - 1e-4) == np.inf


def test_thresholds_are_those_of_the_highest_f1():
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 3)) < 0.3).astype(np.float32)
    shares = np.clip(0.3 * labels + 0.6 * rng.random((60, 3)), 0, 1).round(1)  # many are equal
    for i, threshold in enumerate(choose_thresholds(shares, labels)):
        best = max(f1_score(labels[:, i], shares[:, i] > t) for t in np.linspace(-0.05, 0.95, 11))
        assert f1_score(labels[:, i], shares[:, i] > threshold) == best
    assert (choose_thresholds(shares, np.zeros_like(labels)) == 0.5).all()
    assert (choose_thresholds(shares, np.ones_like(labels)) == 0.5).all()


def test_images_with_several_labels_are_told_by_their_thresholds():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 3)) < 0.1).astype(np.float32)
    logits = (2 * labels - 3 + rng.normal(0, 0.5, labels.shape)).astype(np.float32)
    facts = describe_thresholds(fit_confidence(logits, labels), logits, labels)
    assert facts["macro_f1_after"] > 0.8 > facts["macro_f1_before"]
