import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from finetune.evaluation.novelty import MOST_IMAGES, fit_novelty, score_all, spread
from finetune.export.novelty import NEIGHBOR, Novelty, energy


@pytest.fixture
def known():
    """(features [300, 6] of three classes, labels)."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    return (rng.normal(0, 1, (300, 6)) + 5 * np.eye(6)[labels]).astype(np.float32), labels


def test_energy_is_minus_the_logarithm_of_the_summed_exponentials():
    np.testing.assert_allclose(energy(np.log([[1.0, 2.0, 3.0]])), [-np.log(6.0)], rtol=1e-6)


def test_knn_is_the_cosine_distance_to_the_tenth_neighbor(known):
    features, labels = known
    new = np.random.default_rng(1).normal(0, 1, (7, 6)).astype(np.float32)
    ours = fit_novelty("knn", features, labels).score(None, new)
    cosines = (new / np.linalg.norm(new, axis=1)[:, None]) @ (features / np.linalg.norm(features, axis=1)[:, None]).T
    np.testing.assert_allclose(ours, 1 - np.sort(cosines, axis=1)[:, -NEIGHBOR], atol=1e-5)


def test_with_fewer_images_than_that_the_farthest_counts(known):
    features, labels = known
    ours = fit_novelty("knn", features[:2], labels[:2]).score(None, features[2:5])
    assert np.isfinite(ours).all()


def test_mahalanobis_is_the_squared_distance_to_the_nearest_class(known):
    features, labels = known
    new = np.random.default_rng(1).normal(100, 1, (5, 6)).astype(np.float32)  # far away, where digits could be lost
    ours = fit_novelty("mahalanobis", features, labels).score(None, new)
    means = np.stack([features[labels == i].mean(0) for i in range(3)]).astype(np.float64)
    precision = LedoitWolf(assume_centered=True).fit(features - means[labels]).precision_
    theirs = [min(mahalanobis(x, mean, precision) ** 2 for mean in means) for x in new]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("kind", ["knn", "mahalanobis"])
def test_what_is_far_from_all_classes_scores_higher(known, kind):
    features, labels = known
    novelty = fit_novelty(kind, features, labels)
    other = (features - 8).astype(np.float32)
    assert np.median(score_all(novelty, features, other)) > np.quantile(score_all(novelty, features, features), 0.95)


def test_images_of_several_labels_are_one_group(known):
    features, labels = known
    novelty = fit_novelty("mahalanobis", features, np.eye(3, dtype=np.float32)[labels])
    assert novelty.arrays["means"].shape == (1, 6)


def test_many_images_are_scored_in_parts_to_the_same_scores(known):
    features, labels = known
    novelty, many = fit_novelty("knn", features, labels), np.tile(features, (5, 1))
    np.testing.assert_allclose(score_all(novelty, many, many), np.tile(novelty.score(None, features), 5), atol=1e-6)


def test_of_many_images_some_are_kept_evenly_spread():
    assert (spread(7) == np.arange(7)).all()
    kept = spread(100_000)
    assert len(kept) == MOST_IMAGES
    assert kept[0] == 0
    assert kept[-1] == 99_999


@pytest.mark.parametrize("arrays", [{}, {"means": np.ones((1, 2))}, {"bank": np.ones(3)}])
def test_other_arrays_than_the_kind_has_are_refused(arrays):
    with pytest.raises(ValueError, match="novelty"):
        Novelty("knn", arrays)
