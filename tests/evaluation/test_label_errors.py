import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from finetune.evaluation.label_errors import (
    class_thresholds,
    confident_joint,
    estimate_joint,
    find_label_errors,
    label_scores,
)

# Six images of two classes; the third is labeled 0 and looks like 1.
LABELS = np.array([0, 0, 0, 1, 1, 1])
SHARES = np.array([0.9, 0.8, 0.1, 0.3, 0.2, 0.4])  # of class 0
PROBABILITIES = np.stack([SHARES, 1 - SHARES], axis=1)


def test_a_threshold_is_the_mean_probability_that_images_give_to_their_label():
    np.testing.assert_allclose(class_thresholds(PROBABILITIES, LABELS), [0.6, 0.7])


def test_the_confident_joint_of_six_images_is_that_by_hand():
    # 0.9 and 0.8 reach 0.6 of class 0; 0.9, 0.7 and 0.8 reach 0.7 of class 1; 0.6 of the last image reaches none.
    np.testing.assert_array_equal(confident_joint(PROBABILITIES, LABELS), [[2, 1], [0, 2]])


def test_the_joint_has_the_share_of_each_label():
    np.testing.assert_allclose(estimate_joint(PROBABILITIES, LABELS), [[1 / 3, 1 / 6], [0, 1 / 2]])


def test_as_many_images_are_named_as_the_joint_has_off_its_diagonal():
    errors = find_label_errors(PROBABILITIES, LABELS)
    assert errors.indices.tolist() == [2]
    assert errors.suggested.tolist() == [1]
    np.testing.assert_allclose(errors.scores, [0.1 / 0.6])
    assert errors.noise == pytest.approx(1 / 6)


def test_an_image_counts_for_the_most_probable_class_whose_threshold_it_reaches():
    probabilities = np.array([[0.4, 0.5, 0.1], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]])
    # Thresholds 0.5, 0.8 and 1: the first image reaches none of them, though class 1 is the most probable.
    np.testing.assert_array_equal(
        confident_joint(probabilities, np.array([0, 0, 1, 2])), [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    )
    probabilities[0] = [0.4, 0.85, 0.0]
    assert confident_joint(probabilities, np.array([0, 0, 1, 2]))[0].tolist() == [1, 1, 0]


def test_equal_scores_keep_the_order_of_the_images():
    probabilities = np.tile([[0.1, 0.9]], (4, 1))
    labels = np.array([0, 1, 0, 1])
    errors = find_label_errors(np.concatenate([probabilities, [[0.9, 0.1]] * 4]), np.concatenate([labels, [0] * 4]))
    assert errors.indices.tolist() == [0, 2]


def test_a_label_that_is_the_most_probable_class_is_never_named():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5] * 4, 300)
    labels = rng.integers(0, 4, 300)
    errors = find_label_errors(probabilities, labels)
    assert len(errors.indices)
    assert not (probabilities[errors.indices].argmax(1) == labels[errors.indices]).any()
    assert (probabilities[errors.indices].argmax(1) == errors.suggested).all()
    assert (np.diff(errors.scores) >= 0).all()


def test_scores_are_relative_to_what_a_class_has_on_average():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.7, 0.3]])
    np.testing.assert_allclose(label_scores(probabilities, np.array([0, 0, 1, 1])), [1, 1, 0.4 / 0.35, 0.3 / 0.35])


def test_classes_with_one_image_or_none_are_no_mistake():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1]])
    errors = find_label_errors(probabilities, np.array([0, 1, 0]))
    assert len(errors.indices) == 0
    assert errors.noise == pytest.approx(0)
    assert np.isinf(class_thresholds(probabilities, np.array([0, 1, 0]))[2])


def test_labels_whose_images_reach_no_threshold_are_taken_to_be_right():
    # Class 1 has probabilities 0 and 1 of its own, and the one image of label 0 reaches neither threshold.
    assert estimate_joint(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([0, 1])).tolist() == [[0.5, 0], [0, 0.5]]
    np.testing.assert_allclose(estimate_joint(np.full((4, 2), 0.5), np.array([0, 0, 1, 1])).sum(), 1)


def test_flipped_labels_of_the_digits_are_named_first():
    digits = load_digits()
    rng = np.random.default_rng(0)
    flipped = rng.choice(1797, 90, replace=False)
    labels = digits.target.copy()
    labels[flipped] = (labels[flipped] + rng.integers(1, 10, 90)) % 10
    model = KNeighborsClassifier(20)
    errors = find_label_errors(cross_val_predict(model, digits.data, labels, method="predict_proba"), labels)
    assert np.isin(flipped, errors.indices[:90]).mean() > 0.8
    right = errors.suggested == digits.target[errors.indices]
    assert right[np.isin(errors.indices, flipped)].mean() > 0.9
    assert errors.noise == pytest.approx(0.05, abs=0.01)
