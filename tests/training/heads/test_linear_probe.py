import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from finetune.training.heads.linear_probe import L2_GRID, fit_linear_probe, out_of_fold

BADLY_SCALED = np.logspace(-3, 3, 12)


def blobs(n=120, d=12, classes=4, spread=1.5, scale=1.0):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    x = rng.normal(0, 2, (classes, d))[labels] + rng.normal(0, spread, (n, d)) + 3
    return (x * scale).astype(np.float32), labels


def several_labels(n=120, d=12, classes=4):
    rng = np.random.default_rng(1)
    x = rng.normal(1, 1, (n, d)).astype(np.float32)
    return x, (x @ rng.normal(0, 1, (d, classes)) + rng.normal(0, 2, (n, classes)) > 1).astype(np.float32)


def reference(l2, **settings):
    # newton-cholesky, since sklearn's lbfgs ends far from the optimum where features are badly scaled
    return LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-10, max_iter=10_000, **settings)


def assert_equal_probabilities(probe, x, expected, activation=jax.nn.softmax):
    assert probe.converged
    np.testing.assert_allclose(activation(x @ probe.kernel + probe.bias), expected, atol=2e-4)


@pytest.mark.parametrize("l2", [1e-3, 1.0])
@pytest.mark.parametrize(
    "data",
    [
        {},
        {"spread": 0.1},
        {"spread": 6.0},
        {"scale": BADLY_SCALED},
        {"spread": 6.0, "scale": BADLY_SCALED},
        {"n": 20, "d": 50},
    ],
    ids=["ordinary", "separable", "overlapping", "badly scaled", "badly scaled and overlapping", "n < d"],
)
def test_the_probe_is_scikit_learns_logistic_regression(data, l2):
    x, y = blobs(**data)
    expected = reference(l2).fit(x.astype(np.float64), y).predict_proba(x.astype(np.float64))
    assert_equal_probabilities(fit_linear_probe(x, y, 4, l2), x, expected)


@pytest.mark.parametrize("weights", ["balanced", [0.2, 1.0, 3.0, 0.5]])
def test_class_weights_are_scikit_learns(weights):
    x, y = blobs(spread=6.0)
    x, y = x[y >= np.arange(120) % 3], y[y >= np.arange(120) % 3]
    given = len(y) / (4 * np.bincount(y, minlength=4)) if weights == "balanced" else np.array(weights)
    setting = weights if weights == "balanced" else dict(enumerate(weights))
    expected = reference(1.0, class_weight=setting).fit(x.astype(np.float64), y).predict_proba(x)
    assert_equal_probabilities(fit_linear_probe(x, y, 4, 1.0, class_weights=given), x, expected)


def test_several_labels_are_scikit_learns_one_versus_rest():
    x, y = several_labels()
    expected = OneVsRestClassifier(reference(0.1)).fit(x.astype(np.float64), y).predict_proba(x)
    assert_equal_probabilities(fit_linear_probe(x, y, 4, 0.1), x, expected, jax.nn.sigmoid)


def test_the_class_weights_of_several_labels_weigh_the_classes():
    x, y = several_labels()
    weighted = fit_linear_probe(x, y, 4, 1.0, class_weights=np.array([1, 2, 4, 8]))
    for i, weight in enumerate([1, 2, 4, 8]):
        alone = fit_linear_probe(x, y, 4, 1.0 / weight)
        np.testing.assert_allclose(weighted.kernel[:, i], alone.kernel[:, i], atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, BADLY_SCALED], ids=["as they are", "badly scaled"])
def test_standardized_features_are_scikit_learns(scale):
    x, y = blobs(scale=scale)
    x[:, 4] = 7.1  # constant
    expected = make_pipeline(StandardScaler(), reference(1.0)).fit(x.astype(np.float64), y).predict_proba(x)
    assert_equal_probabilities(fit_linear_probe(x, y, 4, 1.0, standardize=True), x, expected)


def test_validation_images_choose_the_strength():
    x, y = blobs(n=160, spread=5.0)
    probe = fit_linear_probe(x[:80], y[:80], 4, validation=(x[80:], y[80:]))
    losses = {}
    for l2 in L2_GRID:
        probabilities = reference(l2).fit(x[:80].astype(np.float64), y[:80]).predict_proba(x[80:])
        losses[l2] = -np.log(probabilities[np.arange(80), y[80:]]).mean()
    assert probe.l2 == min(losses, key=losses.__getitem__)
    assert list(probe.held_out) == list(L2_GRID)
    np.testing.assert_allclose(list(probe.held_out.values()), list(losses.values()), rtol=1e-3)
    alone = fit_linear_probe(x[:80], y[:80], 4, probe.l2)
    np.testing.assert_allclose(probe.kernel, alone.kernel, atol=1e-3)  # they are not learned from


@pytest.mark.slow
def test_the_sweep_is_fits_from_nothing():
    x, y = blobs(spread=3.0)
    probe = fit_linear_probe(x, y, 4, seed=3)
    alone = fit_linear_probe(x, y, 4, probe.l2)
    np.testing.assert_allclose(x @ probe.kernel + probe.bias, x @ alone.kernel + alone.bias, atol=5e-3)
    for l2 in (0.01, 1.0, 100.0):
        assert fit_linear_probe(x, y, 4, grid=[l2], seed=3).held_out[l2] == pytest.approx(probe.held_out[l2], rel=1e-3)


def test_strength_is_chosen_by_cross_validation_and_noise_asks_for_more_of_it():
    clean, noisy = blobs(spread=0.3), blobs(spread=6.0)
    chosen = [fit_linear_probe(x, y, 4).l2 for x, y in (clean, noisy)]
    assert chosen[0] < chosen[1]
    assert set(chosen) <= set(L2_GRID)


def test_strength_for_several_labels_is_chosen_by_cross_validation():
    probe = fit_linear_probe(*several_labels(), 4)
    assert probe.l2 == min(probe.held_out, key=probe.held_out.__getitem__)
    assert 1e-5 < probe.l2 < 100.0


def test_convergence_is_reported():
    x, y = blobs()
    assert fit_linear_probe(x, y, 4, 1.0).iterations > 2
    limited = fit_linear_probe(x, y, 4, 1.0, max_iterations=2)
    assert (limited.iterations, limited.converged) == (2, False)
    assert not fit_linear_probe(x * np.nan, y, 4, 1.0).converged


def test_one_image_a_class_is_enough():
    x, y = blobs(n=4)
    probe = fit_linear_probe(x, y, 4)
    assert ((x @ probe.kernel + probe.bias).argmax(1) == y).all()
    assert (probe.l2, probe.held_out) == (1.0, {})


@pytest.mark.parametrize("several", [False, True], ids=["a label", "several labels"])
def test_one_image_is_enough(several):
    labels = np.eye(4, dtype=np.float32)[[2]] if several else np.array([2])
    probe = fit_linear_probe(blobs(n=1)[0], labels, 4)
    assert probe.converged
    assert probe.bias.argmax() == 2


def test_constant_features_leave_the_shares_of_the_classes():
    y = np.array([0, 0, 0, 1, 1, 2])
    probe = fit_linear_probe(np.full((6, 5), 0.1, np.float32), y, 3, 1.0, standardize=True)
    assert probe.converged
    np.testing.assert_allclose(jax.nn.softmax(probe.bias), [3 / 6, 2 / 6, 1 / 6], atol=1e-3)


def test_classes_with_one_image_or_none_leave_the_choice_of_strength_to_the_others(recwarn):
    x, y = blobs(spread=6.0)
    more, labels = np.concatenate([x, x[:1] + 20]), np.append(y, 5)
    probe = fit_linear_probe(more, labels, 6)  # class 4 has no images, class 5 one
    assert probe.kernel.shape == (12, 6)
    assert probe.l2 > 1.0  # which is what is taken where no class leaves a choice
    assert probe.converged
    assert not [warning for warning in recwarn if "sklearn" in warning.filename]


def test_out_of_fold_logits_are_those_of_probes_that_have_not_seen_the_fold_at_the_best_strength():
    x, y = blobs(spread=4.0)
    folds = np.arange(len(x)) // 4 % 3
    folds[:4] = -1  # every probe learns from them
    result = out_of_fold(x, y, 4, folds, [1e4, 100.0])
    for fold in range(3):
        model = LogisticRegression(C=1 / result.l2, tol=1e-8, max_iter=10_000)
        model.fit(x[folds != fold].astype(np.float64), y[folds != fold])
        own = result.logits[folds == fold]
        np.testing.assert_allclose(jax.nn.softmax(own), model.predict_proba(x[folds == fold]), atol=2e-4)
    assert np.isnan(result.logits[:4]).all()
    losses = -jax.nn.log_softmax(result.logits[4:])[np.arange(len(x) - 4), y[4:]]
    assert min(result.held_out.values()) == pytest.approx(float(losses.mean()), rel=1e-5)
