import numpy as np
import pytest

from finetune.evaluation import outliers
from finetune.evaluation.outliers import neighbor_distances, outlier_threshold


def expected_distances(features, k):
    x = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    return np.sort(distances, axis=1)[:, k]  # the first is the image itself


@pytest.mark.parametrize("block", [2**25, 300])  # at once, and three rows at a time with a last block that overlaps
def test_distances_are_those_to_the_kth_neighbor(monkeypatch, block):
    monkeypatch.setattr(outliers, "_BLOCK", block)
    features = np.random.default_rng(0).standard_normal((97, 6)).astype(np.float32)
    np.testing.assert_allclose(neighbor_distances(features, 4), expected_distances(features, 4), atol=1e-5)


def test_a_few_images_have_the_farthest_of_the_others():
    features = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(neighbor_distances(features), np.sqrt(2), atol=1e-6)
    assert neighbor_distances(features[:1]).tolist() == [0]


def test_the_threshold_of_a_normal_distribution_is_at_so_many_standard_deviations():
    distances = np.random.default_rng(0).normal(10, 2, 100_000)
    assert outlier_threshold(distances, 3) == pytest.approx(16, abs=0.1)


def test_the_threshold_by_hand():
    assert outlier_threshold(np.array([1.0, 2, 3, 4, 100]), 3) == pytest.approx(3 + 3 * 1.4826)


def test_where_most_distances_are_equal_nothing_is_an_outlier():
    assert outlier_threshold(np.array([0.0, 0, 0, 1])) == np.inf


def test_a_direction_of_its_own_is_the_farthest():
    rng = np.random.default_rng(0)
    features = rng.normal(0, 0.1, (50, 8)) + np.eye(8)[0]
    features[7] = 3 * np.eye(8)[5]
    distances = neighbor_distances(features.astype(np.float32))
    assert distances.argmax() == 7
    assert distances[7] > outlier_threshold(distances)
