import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from finetune.training.heads.clap import fit_clap


def setting(x, y, text):
    """Embeddings, texts and the strengths of the penalty, in float64."""
    projected = x.astype(np.float64) @ np.asarray(text.projection, np.float64)
    f = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    t = np.asarray(text.classes, np.float64)
    zero_shot = softmax(text.scale * f @ t, axis=1)
    strengths = np.array([zero_shot[y == k, k].mean() if (y == k).any() else 1.0 for k in range(t.shape[1])])
    return f, t, strengths


def objective(w, f, y, t, strengths, scale, norm):
    """The published objective and its gradient, weights and texts being ``norm`` times ``w`` and ``t``."""
    lengths = np.linalg.norm(w, axis=0)
    unit, logits = w / lengths, scale * f @ (w / lengths)
    residuals = (softmax(logits, axis=1) - np.eye(w.shape[1])[y]) / len(f)
    by_unit = scale * f.T @ residuals
    gradient = (by_unit - unit * (unit * by_unit).sum(axis=0)) / lengths
    gradient += 2 * norm**2 * strengths * (w - t) / w.shape[1]
    penalty = norm**2 * (strengths * ((w - t) ** 2).sum(axis=0)).mean()
    return -log_softmax(logits, axis=1)[np.arange(len(f)), y].mean() + penalty, gradient


def weights_of(kernel, text):
    """The directions of the weights in the space shared with text."""
    w = np.linalg.lstsq(np.asarray(text.projection, np.float64), np.asarray(kernel, np.float64), rcond=None)[0]
    return w / np.linalg.norm(w, axis=0)


def test_the_weights_have_the_least_objective(clip_blobs):
    (x, y), _, text = clip_blobs()
    for norm in (3.0, 10.0):
        f, t, strengths = setting(x, y, text)

        def flat(w, f=f, t=t, strengths=strengths, norm=norm):
            value, gradient = objective(w.reshape(t.shape), f, y, t, strengths, 100.0, norm)
            return value, gradient.ravel()

        best = minimize(flat, t.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 10_000, "ftol": 1e-15})
        found = weights_of(fit_clap(x, y, 5, text, text_norm=norm)[0], text)
        # logits depend on the direction alone, so that the best length is that of the text's projection on it
        value, _ = objective(found * (found * t).sum(axis=0), f, y, t, strengths, 100.0, norm)
        assert value < best.fun * (1 + 1e-3)
        optimum = best.x.reshape(t.shape)
        np.testing.assert_allclose(found, optimum / np.linalg.norm(optimum, axis=0), atol=3e-3)


def test_the_logits_have_clips_temperature(clip_blobs):
    (x, y), _, text = clip_blobs()
    kernel, bias = fit_clap(x, y, 5, text)
    f, _, _ = setting(x, y, text)
    lengths = np.linalg.norm(x @ text.projection, axis=1, keepdims=True)
    expected = 100 * f @ weights_of(kernel, text) * lengths / lengths.mean()
    np.testing.assert_allclose(x @ kernel, expected, atol=1e-3 * np.abs(expected).max())
    assert not bias.any()


def test_it_is_better_than_its_text_and_stays_closer_to_texts_that_are_right(clip_blobs):
    (x, y), (images, labels), text = clip_blobs(text_noise=2)
    kernel, _ = fit_clap(x, y, 5, text)
    zero_shot = images @ text.projection @ text.classes
    accuracies = [(logits.argmax(axis=1) == labels).mean() for logits in (images @ kernel, zero_shot)]
    assert accuracies[0] > accuracies[1] + 0.1
    _, t, strengths = setting(x, y, text)
    similarity = (weights_of(kernel, text) * t).sum(axis=0)
    assert similarity[strengths.argmax()] > similarity[strengths.argmin()]


def test_one_image_a_class_is_enough_and_a_class_without_images_keeps_near_its_text(clip_blobs):
    (x, y), _, text = clip_blobs(shots=1)
    x, y = x[y != 2], y[y != 2]
    kernel, _ = fit_clap(x, y, 5, text)
    assert np.isfinite(kernel).all()
    assert ((x @ kernel).argmax(axis=1) == y).all()
    assert (weights_of(kernel, text) * np.asarray(text.classes)).sum(axis=0)[2] > 0.95
