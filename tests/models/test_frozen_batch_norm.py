from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.errors import ModelError
from finetune.models.frozen_batch_norm import freeze_batch_norm
from finetune.models.layers.convolution import BatchNorm

HELD = {"body/held"}


def own(x, train, name):
    return BatchNorm(x.shape[-1], name=name)(x, train)


def own_by_keyword(x, train, name):
    return BatchNorm(x.shape[-1], name=name)(x, train=train)


def flax_by_keyword(x, train, name):
    return nn.BatchNorm(momentum=0.9, name=name)(x, use_running_average=not train)


def flax_by_position(x, train, name):
    return nn.BatchNorm(momentum=0.9, name=name)(x, not train)


def flax_by_attribute(x, train, name):
    return nn.BatchNorm(momentum=0.9, name=name, use_running_average=not train)(x)


KINDS = [own, own_by_keyword, flax_by_keyword, flax_by_position, flax_by_attribute]


class Body(nn.Module):
    norm: Callable

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(self.norm(nn.Conv(4, (3, 3), name="conv")(x), train, "held"))
        return self.norm(x, train, "free")


class Network(nn.Module):
    norm: Callable
    remat: bool = False

    def setup(self) -> None:
        body = nn.remat(Body, static_argnums=(2,)) if self.remat else Body
        self.body = body(self.norm)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.body(x, train)


def by_hand(params, statistics, x):
    """Output, and the batch's mean and biased variance where ``free`` stands."""
    params, statistics = params["body"], statistics["body"]
    x = nn.Conv(4, (3, 3)).apply({"params": params["conv"]}, x)
    x = normalized(x, statistics["held"]["mean"], statistics["held"]["var"], params["held"])
    x = jnp.maximum(x, 0)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return normalized(x, mean, var, params["free"]), mean, var


def normalized(x, mean, var, params):
    return (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def train(kind, variables, x, held=HELD, remat=False):
    with freeze_batch_norm(held):
        return Network(kind, remat).apply(variables, x, train=True, mutable=["batch_stats"])


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((6, 5, 5, 3)) * 2 + 1, jnp.float32)


@pytest.fixture(scope="module")
def variables(x) -> Any:
    rng = np.random.default_rng(1)
    fresh = Network(own).init(jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + rng.uniform(0.1, 0.6, leaf.shape), jnp.float32), fresh)


@pytest.mark.parametrize("kind", KINDS)
def test_a_held_norm_uses_its_running_statistics_and_the_others_those_of_the_batch(kind, variables, x):
    y, updated = train(kind, variables, x)
    expected, mean, var = by_hand(variables["params"], variables["batch_stats"], x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    old, new = variables["batch_stats"]["body"], updated["batch_stats"]["body"]
    for name in ("mean", "var"):
        np.testing.assert_array_equal(new["held"][name], old["held"][name])
    unbiased = var * (150 / 149 if kind in (own, own_by_keyword) else 1)
    np.testing.assert_allclose(new["free"]["mean"], 0.9 * old["free"]["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["free"]["var"], 0.9 * old["free"]["var"] + 0.1 * unbiased, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("remat", [False, True])
def test_gradients_see_the_held_statistics_as_constants(kind, remat, variables, x):
    target = jnp.asarray(np.random.default_rng(2).standard_normal((6, 5, 5, 4)), jnp.float32)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: (train(kind, {**variables, "params": p}, x, remat=remat)[0] * target).sum())(params)

    expected = jax.grad(lambda p: (by_hand(p, variables["batch_stats"], x)[0] * target).sum())(variables["params"])
    jax.tree.map(
        lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-3, atol=1e-4), gradient(variables["params"]), expected
    )


@pytest.mark.parametrize("kind", KINDS)
def test_jit_and_rematerialization_hold_statistics_bit_for_bit(kind, variables, x):
    step = jax.jit(lambda variables: train(kind, variables, x, remat=True))
    y, updated = step(variables)
    expected, plain = train(kind, variables, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    old, new = variables["batch_stats"]["body"], updated["batch_stats"]["body"]
    jax.tree.map(np.testing.assert_array_equal, new["held"], old["held"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new["free"], plain["batch_stats"]["body"]["free"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_with_every_norm_held_training_computes_as_evaluation_does(kind, variables, x):
    y, updated = train(kind, variables, x, held={"body/held", "body/free"})
    np.testing.assert_array_equal(y, Network(kind).apply(variables, x))
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("kind", KINDS)
def test_without_paths_and_after_the_context_nothing_is_held(kind, variables, x):
    y, updated = Network(kind).apply(variables, x, train=True, mutable=["batch_stats"])
    again, same = train(kind, variables, x, held=())
    np.testing.assert_array_equal(y, again)
    jax.tree.map(np.testing.assert_array_equal, updated, same)
    assert not np.array_equal(
        updated["batch_stats"]["body"]["held"]["mean"], variables["batch_stats"]["body"]["held"]["mean"]
    )


@pytest.mark.parametrize("shape", [(2, 3), (2, 5)])
def test_a_modules_attribute_is_as_before_even_after_an_error(shape):
    norm = nn.BatchNorm(use_running_average=False)
    variables = norm.init(jax.random.key(0), jnp.ones((2, 3)))
    bound = norm.bind(variables, mutable=["batch_stats"])
    with freeze_batch_norm({""}):
        if shape == (2, 3):
            np.testing.assert_allclose(bound(jnp.full(shape, 7.0)), 7.0, rtol=1e-4)
        else:
            with pytest.raises(Exception, match="shape"):
                bound(jnp.ones(shape))
    assert bound.use_running_average is False


class Scratch(nn.Module):
    """A layer of one's own that keeps a running mean."""

    @nn.compact
    def __call__(self, x, training):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1])
        if training:
            mean.value = 0.5 * mean.value + 0.5 * x.mean(0)
        return x - (x.mean(0) if training else mean.value)


class Unswitchable(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1]).value += 1
        return x


def test_a_layer_of_ones_own_is_held_by_its_own_switch():
    x = jnp.arange(6.0).reshape(3, 2)

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return Scratch(name="held")(x, train), Scratch(name="free")(x, training=train)

    model = Two()
    variables = model.init(jax.random.key(0), x, False)
    with freeze_batch_norm({"held"}):
        (held, free), updated = model.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_array_equal(held, x)
    np.testing.assert_array_equal(free, x - x.mean(0))
    np.testing.assert_array_equal(updated["batch_stats"]["held"]["mean"], np.zeros(2))
    np.testing.assert_array_equal(updated["batch_stats"]["free"]["mean"], 0.5 * x.mean(0))


def test_a_layer_without_a_switch_cannot_be_held():
    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Unswitchable(name="inner")(x)

    x = jnp.ones((3, 2))
    variables = One().init(jax.random.key(0), x)
    with freeze_batch_norm({"inner"}), pytest.raises(ModelError, match="Unswitchable at inner: .*cannot be frozen"):
        One().apply(variables, x, mutable=["batch_stats"])
