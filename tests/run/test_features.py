"""An evaluator from kept features serves again only where a new one would be the same."""

import jax
import jax.numpy as jnp
import pytest

from finetune.distributed.sharding import on_one_device
from finetune.images.spec import ImageSpec
from finetune.models.classifier import build_classifier, head_paths
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.run.features import FeatureEvaluator, RunFeatures
from finetune.run.progress import Progress
from finetune.trees import flatten, merge

SPEC = ImageSpec(16, 16, None, "bicubic", (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def model():
    """A classifier and its variables."""
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    module = VisionTransformer(ViTConfig(**sizes, hidden_act="gelu", image_size=16, patch_size=8))
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *SPEC.shape)))
    return build_classifier((module, variables), 3)


@pytest.fixture(scope="module")
def evaluator(model):
    """Of other values of the head."""
    features = RunFeatures(SPEC, 4, Progress(quiet=True), lambda when: None, on_one_device())
    return FeatureEvaluator(features, *model, head_paths(model[1]), 4)


def with_head(variables, classes=3):
    return merge(variables, {"params": {"head": {"kernel": jnp.ones((8, classes)), "bias": jnp.ones(classes)}}})


def test_it_serves_for_other_values_of_what_varies(model, evaluator):
    classifier, variables = model
    assert evaluator.evaluates(classifier, with_head(variables), head_paths(variables))


def test_it_does_not_serve_for_another_value_of_what_is_frozen(model, evaluator):
    classifier, variables = model
    path = next(path for path in flatten(variables) if "layers/0/" in path and path.endswith("kernel"))
    *above, last = path.split("/")
    leaf = {last: flatten(variables)[path].copy()}
    for name in reversed(above):
        leaf = {name: leaf}
    assert not evaluator.evaluates(classifier, merge(variables, leaf), head_paths(variables))


def test_it_does_not_serve_for_a_head_of_another_shape_or_where_more_varies(model, evaluator):
    classifier, variables = model
    heads = head_paths(variables)
    assert not evaluator.evaluates(classifier, with_head(variables, 4), heads)
    assert not evaluator.evaluates(classifier, variables, heads | {"params/backbone/post_layernorm/bias"})


def test_it_does_not_serve_for_another_classifier(model, evaluator):
    classifier, variables = model
    assert not evaluator.evaluates(classifier.clone(), variables, head_paths(variables))
