import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from finetune.errors import ModelError, TransferError
from finetune.models.classifier import Classifier, build_classifier
from finetune.models.layers.base import BackboneOutput


class WithTrain(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not train)


class WithTraining(nn.Module):
    @nn.compact
    def __call__(self, x, training=False):
        return nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not training)


class WithDeterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=False):
        return nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=deterministic)


class Identity(nn.Module):
    """Gives an array of the rank asked for, and knows no training switch."""

    rank: int

    def __call__(self, x):
        shapes = {2: (len(x), -1), 3: (len(x), -1, x.shape[-1]), 4: x.shape}
        return x.reshape(shapes[self.rank])


class Pooling(nn.Module):
    def __call__(self, x):
        tokens = x.reshape(len(x), -1, 3)
        return BackboneOutput(last_hidden_state=tokens, pooler_output=tokens.max(axis=1))


class FlatMap(nn.Module):
    """Pools to [N, features, 1, 1], as transformers' convolutional networks do."""

    def __call__(self, x):
        return BackboneOutput(last_hidden_state=x, pooler_output=x.mean(axis=(1, 2))[:, :, None, None])


X = jax.random.normal(jax.random.key(5), (4, 6, 6, 3))


def test_features_are_the_backbones_pooled_output(tiny_clip, images):
    classifier, variables = build_classifier(tiny_clip, 5)
    features = jax.jit(lambda v, x: classifier.apply(v, x, method="features"))(variables, images)
    expected = jax.jit(tiny_clip.module.apply)(tiny_clip.variables, images).pooler_output
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_a_zero_head_gives_every_class_the_same_probability():
    classifier, variables = build_classifier((Pooling(), {}), 5, image_size=6)
    logits = classifier.apply(variables, X)
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(jax.nn.softmax(logits), np.full((4, 5), 0.2, np.float32))


def test_a_given_kernel_becomes_the_head():
    kernel = jax.random.normal(jax.random.key(1), (3, 7))
    classifier, variables = build_classifier((Pooling(), {}), 7, head_init=kernel, image_size=6)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], kernel)
    np.testing.assert_array_equal(variables["params"]["head"]["bias"], np.zeros(7))
    expected = np.asarray(X).reshape(4, 36, 3).max(axis=1) @ np.asarray(kernel)
    np.testing.assert_allclose(classifier.apply(variables, X), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(192, 4), (191, 3), (192,)])
def test_a_kernel_of_another_shape_is_refused(tiny_clip, shape):
    with pytest.raises(TransferError, match=r"192.*3") as raised:
        build_classifier(tiny_clip, 3, head_init=jnp.zeros(shape))
    assert str(list(shape))[1:-1] in str(raised.value)


def test_the_backbones_leaves_are_shared_not_copied(tiny_clip):
    _, variables = build_classifier(tiny_clip, 3)
    ours, theirs = flatten_dict(variables["params"]["backbone"]), flatten_dict(tiny_clip.variables["params"])
    assert ours.keys() == theirs.keys()
    assert all(ours[key] is theirs[key] for key in ours)


def test_a_random_head_follows_its_key_and_has_lecuns_spread():
    backbone = (Identity(2), {})
    heads = [
        build_classifier(backbone, 50, head_init="lecun_normal", rng=jax.random.key(k), image_size=16)[1]["params"]
        for k in (0, 0, 1)
    ]
    kernels = [head["head"]["kernel"] for head in heads]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 0.01
    assert float(kernels[0].std()) == pytest.approx(768**-0.5, rel=0.02)  # 16 * 16 * 3 features


@pytest.mark.parametrize("backbone", [WithTrain(), WithTraining(), WithDeterministic()], ids=lambda b: type(b).__name__)
def test_the_backbones_own_training_switch_is_found(backbone):
    classifier, variables = build_classifier((backbone, {}), 2, image_size=6)
    rngs = {"dropout": jax.random.key(0)}
    evaluated = classifier.apply(variables, X, method="features")
    trained = classifier.apply(variables, X, train=True, method="features", rngs=rngs)
    np.testing.assert_array_equal(evaluated, X.reshape(4, -1))
    assert 0.3 < float((trained == 0).mean()) < 0.7


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_arrays_of_any_rank_are_pooled(rank):
    classifier, variables = build_classifier((Identity(rank), {}), 2, image_size=6)
    expected = X.reshape(4, -1) if rank == 2 else np.asarray(X).mean(axis=(1, 2))
    np.testing.assert_allclose(classifier.apply(variables, X, method="features"), expected, atol=1e-6)
    assert variables["params"]["head"]["kernel"].shape == (expected.shape[1], 2)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (None, lambda tokens: tokens.max(axis=1)),
        ("pooler", lambda tokens: tokens.max(axis=1)),
        ("cls", lambda tokens: tokens[:, 0]),
        ("mean", lambda tokens: tokens.mean(axis=1)),
    ],
)
def test_the_pool_that_is_asked_for_is_used(pool, expected):
    classifier, variables = build_classifier((Pooling(), {}), 2, pool=pool, image_size=6)
    features = classifier.apply(variables, X, method="features")
    np.testing.assert_allclose(features, expected(np.asarray(X).reshape(4, 36, 3)), atol=1e-6)


@pytest.mark.parametrize(("pool", "rank"), [("pooler", 3), ("cls", 4), ("cls", 2)])
def test_a_pool_that_the_backbone_cannot_give_is_refused(pool, rank):
    with pytest.raises(ModelError, match=rf"pool='{pool}'.*use .*'mean'"):
        build_classifier((Identity(rank), {}), 2, pool=pool, image_size=6)


def test_a_pooled_map_of_one_pixel_is_flattened():
    classifier, variables = build_classifier((FlatMap(), {}), 2, image_size=6)
    assert variables["params"]["head"]["kernel"].shape == (3, 2)
    np.testing.assert_allclose(
        classifier.apply(variables, X, method="features"), np.asarray(X).mean(axis=(1, 2)), atol=1e-6
    )


def test_dropout_acts_on_the_features_in_training_alone():
    kernel = jnp.eye(108)
    classifier, variables = build_classifier((Identity(2), {}), 108, head_init=kernel, dropout=0.25, image_size=6)
    evaluated = classifier.apply(variables, X)
    trained = np.asarray(classifier.apply(variables, X, train=True, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_allclose(evaluated, X.reshape(4, -1), atol=1e-6)
    kept = trained != 0
    assert 0.65 < kept.mean() < 0.85
    np.testing.assert_allclose(trained[kept], np.asarray(X.reshape(4, -1))[kept] / 0.75, rtol=1e-5)


def test_running_statistics_move_with_the_backbone(batch_norm_net):
    module, variables = batch_norm_net
    classifier, result = build_classifier((module, variables), 2, image_size=6)
    ours = flatten_dict(result["batch_stats"]["backbone"])
    theirs = flatten_dict(variables["batch_stats"])
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    expected = np.asarray(module.apply(variables, X)).mean(axis=(1, 2))
    np.testing.assert_allclose(classifier.apply(result, X, method="features"), expected, atol=1e-5)


def test_a_frozen_backbone_holds_its_running_statistics_while_the_head_trains(batch_norm_net):
    module, variables = batch_norm_net
    classifier = Classifier(module, 2)
    _, result = build_classifier((module, variables), 2, image_size=6)
    before = flatten_dict(result["batch_stats"])
    for backbone_train in (False, None):
        _, updated = classifier.apply(result, X, train=True, backbone_train=backbone_train, mutable=["batch_stats"])
        after = flatten_dict(updated["batch_stats"])
        same = all(np.array_equal(before[key], after[key]) for key in before)
        assert same == (backbone_train is False)


def test_backbone_variables_that_do_not_fit_are_refused(batch_norm_net):
    module, variables = batch_norm_net
    with pytest.raises(TransferError, match="missing     batch_stats/backbone/stem/norm/mean"):
        build_classifier((module, {"params": variables["params"]}), 2, image_size=6)
