import numpy as np
import pytest
from scipy.special import softmax

from finetune.models.heads import KnnConfig
from finetune.training.heads.knn import fit_knn


def images(n, d=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return (np.eye(d)[labels] + rng.normal(0, 0.6, (n, d))).astype(np.float32), labels


def vote_shares(x, memory, labels, k, temperature, classes):
    """DINO's vote, image by image."""
    memory = memory / np.linalg.norm(memory, axis=1, keepdims=True)
    shares = np.zeros((len(x), classes))
    for share, image in zip(shares, x, strict=True):
        similarities = memory @ image / np.linalg.norm(image)
        for i in np.argsort(-similarities)[:k]:
            share[labels[i]] += np.exp(similarities[i] / temperature)
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_probabilities_are_the_shares_of_the_weighted_votes_of_the_nearest_images(k):
    (memory, labels), (x, _) = images(30), images(20, seed=1)
    logits = KnnConfig(30, k, temperature=0.2).build(5).apply(fit_knn(memory, labels), x)
    expected = vote_shares(x.astype(np.float64), memory.astype(np.float64), labels, k, 0.2, 5)
    np.testing.assert_allclose(softmax(logits, axis=1), expected, atol=1e-5)


def test_a_class_without_votes_has_a_finite_logit_and_each_image_is_its_own_neighbour():
    memory, labels = images(30)
    logits = np.asarray(KnnConfig(30, k=1).build(6).apply(fit_knn(memory, labels), memory))
    np.testing.assert_array_equal(logits.argmax(axis=1), labels)
    np.testing.assert_allclose(logits.min(), np.log(1e-8), rtol=1e-6)


def test_the_length_of_features_does_not_matter_and_features_of_zero_are_no_nan():
    (memory, labels), (x, _) = images(30), images(4, seed=1)
    head, variables = KnnConfig(30).build(4), fit_knn(3 * memory, labels)
    np.testing.assert_allclose(head.apply(variables, 5 * x), head.apply(fit_knn(memory, labels), x), atol=1e-4)
    assert np.isfinite(head.apply(variables, np.zeros((1, 6)))).all()
