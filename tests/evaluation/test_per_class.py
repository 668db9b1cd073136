import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support

from finetune.evaluation import per_class
from finetune.evaluation.per_class import class_results, most_confused, worst_mistakes
from finetune.evaluation.statistics import wilson_interval


@pytest.fixture
def answers():
    """(predictions, labels, scores) of 300 images and five classes, the last of which has no image."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    scores = rng.normal(size=(300, 5)) + 1.5 * np.eye(5)[labels]
    return scores.argmax(1), labels, scores


def test_precision_recall_and_f1_are_those_of_scikit_learn(answers):
    predictions, labels, scores = answers
    results = class_results(predictions, labels, scores)
    expected = precision_recall_fscore_support(labels, predictions, labels=range(4), zero_division=0)
    for i, (precision, recall, f1, images) in enumerate(zip(*expected, strict=True)):
        assert (results[i].precision, results[i].recall, results[i].f1) == pytest.approx((precision, recall, f1))
        assert results[i].images == images
        right = int((predictions[labels == i] == i).sum())
        assert results[i].recall_interval == wilson_interval(right, int(images))


def test_a_class_without_images_has_no_recall_and_no_interval(answers):
    last = class_results(*answers)[-1]
    assert (last.images, last.recall, last.recall_interval) == (0, None, None)
    assert last.precision == 0.0  # some images are taken for it


def test_several_labels_have_an_average_precision_for_each_class():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (80, 3)) * [1, 1, 0]
    scores = rng.normal(size=(80, 3)) + labels
    results = class_results((scores > 0).astype(int), labels, scores)
    for i in (0, 1):
        assert results[i].average_precision == pytest.approx(average_precision_score(labels[:, i], scores[:, i]))
        assert results[i].recall == pytest.approx((scores[labels[:, i] > 0, i] > 0).mean())
    assert results[2].average_precision is None


def test_confusions_are_counted_and_the_most_frequent_come_first(answers):
    predictions, labels, _ = answers
    expected = confusion_matrix(labels, predictions, labels=range(5))
    np.testing.assert_array_equal(per_class.confusion_matrix(predictions, labels, np.arange(5)), expected)
    some = np.array([3, 1])
    np.testing.assert_array_equal(per_class.confusion_matrix(predictions, labels, some), expected[np.ix_(some, some)])
    pairs = most_confused(predictions, labels, 50)
    counts = [count for *_, count in pairs]
    assert counts == [expected[true, answer] for true, answer, _ in pairs] == sorted(counts, reverse=True)
    assert sum(counts) == len(labels) - np.trace(expected)


def test_the_classes_with_the_most_mistakes_count_as_the_true_one_and_as_the_answer():
    labels, predictions = np.array([0, 1, 2, 3, 3]), np.array([4, 4, 2, 3, 0])
    assert per_class.most_mistaken(predictions, labels, 5, 2).tolist() == [0, 4]
    assert most_confused(labels, labels, 3) == []


def test_the_worst_mistake_is_the_most_confident_one():
    shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [np.nan, np.nan]])
    labels = np.array([1, 1, 1, 1])
    assert worst_mistakes(shares, labels, 4).tolist() == [0, 2, 3]  # the second is right
    assert worst_mistakes(shares, labels, 1).tolist() == [0]
    several = np.array([[1, 0], [0, 1], [0, 0], [1, 1]])
    assert worst_mistakes(shares, several, 4).tolist() == [2, 3]
