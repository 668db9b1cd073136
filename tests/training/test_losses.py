import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDENS
from pydantic import TypeAdapter
from sklearn.utils.class_weight import compute_class_weight

from finetune.errors import RecipeError
from finetune.recipe import Loss
from finetune.training.losses import class_weights, per_example_loss

GOLDEN = np.load(GOLDENS / "losses" / "expected.npz")
SMOOTH = {"name": "cross_entropy", "label_smoothing": 0.1}


def loss(written):
    return TypeAdapter(Loss).validate_python(written)


def mean(written, targets, weights=None, logits=None):
    logits = jnp.asarray(GOLDEN["logits"] if logits is None else logits)
    losses, counts = per_example_loss(loss(written), logits, jnp.asarray(targets), weights)
    assert losses.shape == counts.shape == (len(targets),)
    return float(losses.sum() / counts.sum())


@pytest.mark.parametrize(
    ("expected", "written", "targets", "weighted"),
    [
        ("plain", "cross_entropy", "labels", False),
        ("smooth", SMOOTH, "labels", False),
        ("weighted", "cross_entropy", "labels", True),
        ("smooth_weighted", SMOOTH, "labels", True),
        ("of_soft", "cross_entropy", "soft", False),
        ("of_soft_smooth_weighted", SMOOTH, "soft", True),
        ("sigmoid", "binary_cross_entropy", "several", False),
        ("sigmoid_smooth", {"name": "binary_cross_entropy", "label_smoothing": 0.1}, "labels", False),
    ],
)
def test_losses_are_pytorchs(expected, written, targets, weighted):
    found = mean(written, GOLDEN[targets], GOLDEN["weights"] if weighted else None)
    np.testing.assert_allclose(found, GOLDEN[expected], rtol=1e-5)


def test_the_focal_loss_is_its_closed_form_and_cross_entropy_where_gamma_is_zero():
    probabilities = np.asarray(jax.nn.softmax(GOLDEN["logits"]))[np.arange(6), GOLDEN["labels"]]
    expected = np.mean((1 - probabilities) ** 2 * -np.log(probabilities))
    np.testing.assert_allclose(mean("focal", GOLDEN["labels"]), expected, rtol=1e-4)
    found = mean({"name": "focal", "gamma": 0.0}, GOLDEN["labels"])
    np.testing.assert_allclose(found, GOLDEN["plain"], rtol=1e-5)


@pytest.mark.parametrize("written", ["cross_entropy", "focal", {"name": "focal", "gamma": 0.5}, "binary_cross_entropy"])
def test_extreme_logits_have_finite_losses_and_gradients(written):
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]])

    def total(logits):
        return per_example_loss(loss(written), logits, jnp.array([0, 0, 1]))[0].sum()

    value, gradient = jax.value_and_grad(total)(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_balanced_weights_are_scikit_learns_and_a_class_without_images_has_none():
    labels = np.array([0, 0, 0, 1, 2, 2])
    balanced = loss({"name": "focal", "class_weights": "balanced"})
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights(balanced, labels, 3), expected, rtol=1e-6)
    assert class_weights(balanced, labels, 4)[3] == 0
    assert class_weights(loss("binary_cross_entropy"), labels, 3) is None


def test_as_many_weights_as_classes_are_needed():
    given = loss({"name": "cross_entropy", "class_weights": [1.0, 2.0]})
    np.testing.assert_array_equal(class_weights(given, np.array([0, 1]), 2), [1, 2])
    with pytest.raises(RecipeError, match=r"loss\.class_weights: 2 weights for 3 classes"):
        class_weights(given, np.array([0, 1, 2]), 3)


def test_balanced_weights_need_labels():
    balanced = loss({"name": "focal", "class_weights": "balanced"})
    with pytest.raises(RecipeError, match=r"balanced needs the training labels.*class_weights=.*balanced_weights"):
        class_weights(balanced, None, 3)
