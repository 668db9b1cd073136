import numpy as np
import pytest
from scipy.special import softmax

from finetune.training.heads.lp_plus_plus import fit_lp_plus_plus


def published(x, y, text, classes, steps=300):
    """The published code in float64, without the bias, for as many images in each class; the linear head's kernel."""
    projection, t = np.asarray(text.projection, np.float64), np.asarray(text.classes, np.float64)
    projected = x.astype(np.float64) @ projection
    f = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    n, one_hot, cosines = len(f), np.eye(classes)[y], f @ t
    rate = 4 * n / np.linalg.eigvalsh(f.T @ f).max()
    alpha_rate = n / (4 * (cosines**2).sum(axis=0).max())
    w = f.T @ one_hot
    alpha = np.full(classes, 250 * np.mean([cosines[y == k, k].mean() for k in range(classes)]))
    velocity, accumulated = np.zeros_like(w), np.zeros_like(alpha)
    for step in range(1, steps + 1):
        residuals = (softmax(f @ w + alpha * cosines, axis=1) - one_hot) / n
        velocity = 0.9 * velocity + f.T @ residuals
        accumulated += (residuals * cosines).sum(axis=0)
        w = w - rate * velocity
        if step % 10 == 0:
            alpha = alpha - alpha_rate * accumulated
    return projection @ (w + alpha * t) / np.linalg.norm(projected, axis=1).mean()


@pytest.mark.parametrize("shots", [1, 6, 16])
def test_the_steps_are_those_of_the_published_code(clip_blobs, shots):
    (x, y), _, text = clip_blobs(shots)
    kernel, bias = fit_lp_plus_plus(x, y, 5, text)
    expected = published(x, y, text, 5)
    np.testing.assert_allclose(kernel, expected, atol=1e-4 * np.abs(expected).max())
    assert not bias.any()


def test_it_is_better_than_its_text(clip_blobs):
    (x, y), (images, labels), text = clip_blobs(text_noise=2)
    kernel, _ = fit_lp_plus_plus(x, y, 5, text)
    zero_shot = images @ text.projection @ text.classes
    accuracies = [(logits.argmax(axis=1) == labels).mean() for logits in (images @ kernel, zero_shot)]
    assert accuracies[0] > accuracies[1] + 0.1


def test_a_class_without_images_takes_part_by_its_text(clip_blobs):
    (x, y), (images, labels), text = clip_blobs(text_noise=0.1)
    some = y != 2
    kernel, _ = fit_lp_plus_plus(x[some], y[some], 5, text, steps=1)
    assert np.isfinite(kernel).all()
    assert ((images @ kernel).argmax(axis=1) == labels)[labels == 2].mean() > 0.5


def test_many_images_do_not_make_the_start_more_certain_than_sixteen_do(clip_blobs):
    (x, y), _, text = clip_blobs(16)
    once, four_times = (fit_lp_plus_plus(np.tile(x, (k, 1)), np.tile(y, k), 5, text, steps=20)[0] for k in (1, 4))
    np.testing.assert_allclose(four_times, once, atol=1e-4 * np.abs(once).max())
