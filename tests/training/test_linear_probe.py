import jax
import numpy as np
from sklearn.linear_model import LogisticRegression

from finetune.training.linear_probe import L2_GRID, fit_linear_probe


def blobs(n=120, d=12, classes=4, spread=1.5):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    return (rng.normal(0, 2, (classes, d))[labels] + rng.normal(0, spread, (n, d)) + 3).astype(np.float32), labels


def test_the_probe_is_scikit_learns_logistic_regression():
    x, y = blobs()
    for l2 in (0.1, 10.0):
        kernel, bias, _ = fit_linear_probe(x, y, 4, l2)
        reference = LogisticRegression(C=1 / l2, max_iter=10_000, tol=1e-10).fit(x.astype(np.float64), y)
        np.testing.assert_allclose(
            jax.nn.softmax(x @ kernel + bias), reference.predict_proba(x.astype(np.float64)), atol=2e-4
        )


def test_strength_is_chosen_by_cross_validation_and_noise_asks_for_more_of_it():
    clean, noisy = blobs(spread=0.3), blobs(spread=6.0)
    chosen = [fit_linear_probe(x, y, 4)[2] for x, y in (clean, noisy)]
    assert chosen[0] < chosen[1]
    assert set(chosen) <= set(L2_GRID)


def test_one_image_a_class_is_enough():
    x, y = blobs(n=4)
    kernel, bias, _ = fit_linear_probe(x, y, 4)
    assert ((x @ kernel + bias).argmax(1) == y).all()


def test_classes_with_one_image_or_none_leave_the_choice_of_strength_to_the_others(recwarn):
    x, y = blobs(spread=6.0)
    more, labels = np.concatenate([x, x[:1] + 20]), np.append(y, 5)
    kernel, _, strength = fit_linear_probe(more, labels, 6)  # class 4 has no images, class 5 one
    assert kernel.shape == (12, 6)
    assert strength > 1.0  # which is what is taken where no class leaves a choice
    assert not [warning for warning in recwarn if "sklearn" in warning.filename]
