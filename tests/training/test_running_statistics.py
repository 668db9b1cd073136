import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDENS

from finetune.models.backbone import load_backbone
from finetune.models.classifier import build_classifier
from finetune.training.running_statistics import differing_statistics, make_estimator
from finetune.trees import flatten, unflatten

FOLDER = GOLDENS / "batchnorm-step"


@pytest.fixture(scope="module")
def network():
    """(classifier, variables, spec, batches of 8 images)."""
    backbone = load_backbone(FOLDER)
    classifier, variables = build_classifier(backbone, 3)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, *backbone.image_spec.shape), np.uint8)
    return classifier, variables, backbone.image_spec, [{"image": batch} for batch in images]


def statistics(variables):
    return flatten(variables["batch_stats"])


def reestimate(network, variables, paths):
    classifier, _, spec, batches = network
    return make_estimator(classifier, spec, variables["batch_stats"], paths)(variables, batches)


def in_training(network, images, momentum_of_old):
    """The statistics after a batch, by the modules' own rule, from statistics of zero."""
    classifier, variables, spec, _ = network
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    given = {**variables, "batch_stats": zeros}
    _, updated = classifier.apply(given, spec.normalize(images), train=True, mutable=["batch_stats"])
    return {path: leaf / (1 - momentum_of_old) for path, leaf in statistics(updated).items()}


def test_statistics_are_the_mean_of_the_batches(network):
    _, variables, _, batches = network
    found = statistics(reestimate(network, variables, set(statistics(variables))))
    parts = [in_training(network, batch["image"], 0.9) for batch in batches]
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, np.mean([part[path] for part in parts], axis=0), rtol=1e-4, atol=1e-5)


def test_modules_that_are_not_named_keep_their_statistics_and_use_them(network):
    _, variables, _, _ = network
    module = "backbone/stages_0/blocks_0/convs_0/norm"
    others = {path for path in statistics(variables) if not path.startswith(f"{module}/")}
    found = reestimate(network, variables, others)
    assert differing_statistics(variables, found) == others
    moved = {path: leaf + (path not in others) for path, leaf in statistics(variables).items()}
    again = reestimate(network, {**variables, "batch_stats": unflatten(moved)}, others)
    assert not np.allclose(*(statistics(v)["backbone/stages_0/blocks_0/convs_1/norm/mean"] for v in (found, again)))


def test_statistics_that_are_equal_do_not_differ(network):
    _, variables, _, _ = network
    assert differing_statistics(variables, variables) == frozenset()
    assert differing_statistics({"params": {}}, {"params": {}}) == frozenset()
