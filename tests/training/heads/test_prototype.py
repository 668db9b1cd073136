import numpy as np
import pytest
from scipy.special import log_softmax

from finetune.training.heads.prototype import fit_prototype

DISTANCES = ["cosine", "euclidean"]


def blobs(n=60, d=8, classes=5, spread=1.5, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centers = np.random.default_rng(1).normal(0, 1, (classes, d))
    return (centers[labels] + rng.normal(0, spread, (n, d)) + 5).astype(np.float32), labels


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def centers_of(x, labels, classes, distance):
    x = unit(x) if distance == "cosine" else x
    means = np.stack([x[labels == k].mean(axis=0) for k in range(classes)])
    return unit(means) if distance == "cosine" else means


def scores_of(x, centers, distance, mean_length):
    """Half the negative squared distances; cosines, times the length of x over the mean length."""
    if distance == "cosine":
        return x @ centers.T / mean_length
    return -((x[:, None] - centers) ** 2).sum(axis=-1) / 2


def held_out_scores(x, labels, classes, distance):
    """Every image with the centers of all the others."""
    rows, mean_length = [], np.linalg.norm(x, axis=1).mean()
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        centers = centers_of(x[others], labels[others], classes, distance)
        rows.append(scores_of(x[i : i + 1], centers, distance, mean_length)[0])
    return np.stack(rows)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_class_with_the_nearest_mean_is_predicted(distance):
    (x, y), (images, _) = blobs(), blobs(n=200, seed=2)
    kernel, bias = fit_prototype(x, y, 5, distance=distance)
    centers = centers_of(x.astype(np.float64), y, 5, distance)
    if distance == "cosine":
        expected = (unit(images) @ centers.T).argmax(axis=1)
    else:
        expected = np.linalg.norm(images[:, None] - centers, axis=-1).argmin(axis=1)
    np.testing.assert_array_equal((images @ kernel + bias).argmax(axis=1), expected)


@pytest.mark.parametrize("distance", DISTANCES)
def test_probabilities_are_those_of_the_temperature_that_is_most_likely_for_images_held_out_of_their_means(distance):
    x, y = blobs()
    kernel, bias = fit_prototype(x, y, 5, distance=distance)
    x = x.astype(np.float64)
    scores = scores_of(x, centers_of(x, y, 5, distance), distance, np.linalg.norm(x, axis=1).mean())
    targets = np.eye(5)[y] + (0.2 - np.eye(5)[y]) / (len(x) + 2)
    held_out = held_out_scores(x, y, 5, distance)
    temperatures = np.geomspace(0.01, 100, 20_001)
    losses = [-(targets * log_softmax(t * held_out, axis=1)).sum() for t in temperatures]
    t = temperatures[np.argmin(losses)]
    np.testing.assert_allclose(log_softmax(x @ kernel + bias, axis=1), log_softmax(t * scores, axis=1), rtol=2e-3)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_class_without_images_is_never_predicted(distance):
    x, y = blobs()
    kernel, bias = fit_prototype(x, y * 2, 11, distance=distance)
    images = np.random.default_rng(3).normal(0, 1e4, (1000, 8))
    logits = images @ np.asarray(kernel) + np.asarray(bias)
    assert np.isfinite(logits).all()
    assert (logits[:, 1::2].max(axis=1) <= logits.max(axis=1) - 9_999).all()
    for ours, without in zip((kernel, bias), fit_prototype(x, y, 5, distance=distance), strict=True):
        np.testing.assert_allclose(ours[..., :10:2], without, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("distance", DISTANCES)
def test_one_image_a_class_is_enough(distance):
    x, y = blobs(n=5)
    kernel, bias = fit_prototype(x, y, 5, distance=distance)
    logits = x @ kernel + bias
    assert (logits.argmax(axis=1) == y).all()
    assert np.abs(logits - logits.mean(axis=1, keepdims=True)).max() < 10


@pytest.mark.parametrize("distance", DISTANCES)
def test_separable_classes_have_finite_logits_and_a_single_class_too(distance):
    x, y = blobs(spread=1e-3)
    kernel, bias = fit_prototype(x, y, 5, distance=distance)
    assert 0.9 < np.exp(log_softmax(x @ kernel + bias, axis=1)[np.arange(60), y]).min() < 1
    assert np.isfinite(fit_prototype(x, 0 * y, 1, distance=distance)[0]).all()
