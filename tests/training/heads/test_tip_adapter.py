import jax
import numpy as np
import pytest
from scipy.special import softmax

from finetune.models.heads import TipAdapterConfig
from finetune.training.heads.tip_adapter import fit_tip_adapter


def embed(x, text):
    projected = x.astype(np.float64) @ np.asarray(text.projection, np.float64)
    return projected / np.linalg.norm(projected, axis=1, keepdims=True)


def accuracy(variables, x, y):
    keys = variables["params"]["keys"]
    logits = TipAdapterConfig(*keys.shape).build(5).apply(variables, x)
    return (logits.argmax(axis=1) == y).mean()


def test_without_epochs_the_keys_are_the_embeddings_and_alpha_and_beta_the_published_ones(clip_blobs):
    (x, y), _, text = clip_blobs()
    variables, report = fit_tip_adapter(x, y, 5, text)
    np.testing.assert_allclose(variables["params"]["keys"], embed(x, text), atol=1e-6)
    np.testing.assert_array_equal(variables["memory"]["labels"], y)
    assert (report.alpha, report.beta, report.accuracy) == (1.17, 1.0, None)
    assert [float(variables["params"][name]) for name in ("alpha", "scale")] == [np.float32(1.17), 100]


def test_alpha_and_beta_are_the_first_of_the_best_accuracy_on_the_validation_images(clip_blobs):
    (x, y), (images, labels), text = clip_blobs(text_noise=2)
    _, report = fit_tip_adapter(x, y, 5, text, validation=(images, labels))
    f, keys = embed(images, text), embed(x, text)
    zero_shot, best = 100 * f @ np.asarray(text.classes), (0.0, 0.0, 0.0)
    for i in range(200):
        beta = 0.1 + i * (13 - 0.1) / 200
        cache = np.exp(-(beta - beta * f @ keys.T)) @ np.eye(5)[y]
        for j in range(20):
            alpha = 0.1 + j * (13 - 0.1) / 20
            share = ((zero_shot + alpha * cache).argmax(axis=1) == labels).mean()
            best = (share, beta, alpha) if share > best[0] else best
    np.testing.assert_allclose((report.accuracy, report.beta, report.alpha), best, atol=1e-4)


def test_what_is_given_is_not_searched(clip_blobs):
    (x, y), validation, text = clip_blobs()
    _, report = fit_tip_adapter(x, y, 5, text, alpha=2.5, validation=validation)
    assert report.alpha == 2.5
    _, report = fit_tip_adapter(x, y, 5, text, alpha=2.5, beta=7.0, validation=validation)
    assert (report.alpha, report.beta, report.accuracy) == (2.5, 7.0, None)


@pytest.mark.parametrize("batch_size", [8, 256])
def test_fine_tuning_is_pytorchs_adamw_on_the_keys_with_a_cosine_schedule(clip_blobs, batch_size):
    (x, y), _, text = clip_blobs()  # 30 images, so that the last of four batches has 6
    variables, _ = fit_tip_adapter(
        x, y, 5, text, alpha=2.0, beta=3.0, epochs=5, learning_rate=1e-2, batch_size=batch_size, seed=1
    )
    rng, f, t = np.random.default_rng(1), embed(x, text), np.asarray(text.classes, np.float64)
    orders = [rng.permutation(30) for _ in range(5)]
    batches = [order[i : i + batch_size] for order in orders for i in range(0, 30, batch_size)]
    keys, one_hot = f.copy(), np.eye(5)[y]
    first, second = np.zeros_like(keys), np.zeros_like(keys)
    for step, batch in enumerate(batches):
        similar = np.exp(-3 * (1 - f[batch] @ keys.T))
        residuals = (softmax(100 * f[batch] @ t + 2 * similar @ one_hot, axis=1) - one_hot[batch]) / len(batch)
        gradient = (2 * 3 * similar * (residuals @ one_hot.T)).T @ f[batch]
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        rate = 1e-2 * (1 + np.cos(np.pi * step / len(batches))) / 2
        adam = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-4)
        keys = keys - rate * (adam + 0.01 * keys)
    np.testing.assert_allclose(variables["params"]["keys"], keys, atol=1e-4)
    assert np.abs(keys - f).max() > 0.01


def test_it_is_better_than_its_text_and_fine_tuning_fits_more(clip_blobs):
    (x, y), (images, labels), text = clip_blobs(text_noise=2)
    zero_shot = ((images @ text.projection @ text.classes).argmax(axis=1) == labels).mean()
    fitted = [fit_tip_adapter(x, y, 5, text, alpha=12.0, beta=5.0, epochs=epochs)[0] for epochs in (0, 20)]
    assert accuracy(fitted[0], images, labels) > zero_shot + 0.1
    assert accuracy(fitted[1], x, y) >= accuracy(fitted[0], x, y)


def test_the_same_seed_gives_the_same_keys(clip_blobs):
    (x, y), _, text = clip_blobs(shots=1)
    one, two, other = (
        fit_tip_adapter(x, y, 5, text, epochs=2, batch_size=2, seed=seed)[0]["params"]["keys"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert jax.numpy.abs(one - other).max() > 0
