"""Flax's guide on BatchNorm, and a BatchNorm written from scratch: the guide's steps are written out here."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state
from sklearn.datasets import load_digits

from finetune import build_classifier
from finetune.evaluation.steps import make_eval_step
from finetune.images.spec import ImageSpec
from finetune.models.layers.convolution import BatchNorm
from finetune.optim.schedules import StageLength
from finetune.recipe import TrainStage
from finetune.training.stage_trainer import StageTrainer

SPEC = ImageSpec(8, 8, None, "bilinear", (0.3,), (0.4,))
RATE, BATCH, STEPS = 0.01, 64, 10
# The bias in front of a batch normalization has no gradient but rounding noise, which Adam would scale up to its rate.
OPTIMIZERS = {True: ("sgd", optax.sgd(RATE, momentum=0.9)), False: ("adam", optax.adam(RATE))}


class MLP(nn.Module):
    """The guide's network: a hidden layer, with batch normalization or without."""

    norm: bool

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(32)(x.reshape(len(x), -1))
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(10)(nn.relu(x))


class GuidesState(train_state.TrainState):
    batch_stats: Any


@jax.jit
def guides_step(state, batch):
    """The guide's train step, on normalized images."""
    images = SPEC.normalize(batch["image"])

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = state.apply_fn(variables, images, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, (logits, updates)

    (loss, (_, updates)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=grads)
    return state.replace(batch_stats=updates.get("batch_stats", {})), loss


def batches():
    digits = load_digits()
    images = (digits.images * 15.9).astype(np.uint8)[..., None]
    for i in range(STEPS):
        part = slice(i * BATCH, (i + 1) * BATCH)
        yield {"image": images[part], "label": digits.target[part].astype(np.int32)}


def ours(module):
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    example = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    classifier, variables = build_classifier((module, variables), 10, head_init=None, example=example)
    rules = [{"match": ".*", "optimizer": OPTIMIZERS[module.norm][0], "learning_rate": RATE}]
    stage = TrainStage(steps=STEPS, batch_size=BATCH, partitions=rules)
    return classifier, variables, StageTrainer(stage, classifier, variables, SPEC, StageLength(STEPS))


@pytest.mark.parametrize("norm", [True, False])
def test_every_step_is_the_guides(norm):
    module = MLP(norm)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    statistics = variables.get("batch_stats", {})
    guide = GuidesState.create(
        apply_fn=module.apply, params=variables["params"], batch_stats=statistics, tx=OPTIMIZERS[norm][1]
    )
    _, _, training = ours(module)
    state = training.init_state()
    for batch in batches():
        guide, loss = guides_step(guide, batch)
        state, metrics = training.step(state, training.frozen, batch)
        np.testing.assert_allclose(metrics["loss"] / metrics["count"], loss, rtol=1e-6)
    assert ("batch_stats" in state.collections) == norm
    reached = training.variables(state)
    for name, tree in (("params", guide.params), ("batch_stats", guide.batch_stats)):
        expected, found = jax.tree.leaves(tree), jax.tree.leaves(reached.get(name, {}).get("backbone", {}))
        assert len(expected) == len(found)
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(b, a, atol=1e-6)


def test_statistics_are_initialized_updated_in_training_and_used_as_they_are_in_evaluation():
    classifier, variables, training = ours(MLP(True))
    start = variables["batch_stats"]["backbone"]["BatchNorm_0"]
    np.testing.assert_array_equal(start["mean"], np.zeros(32))
    np.testing.assert_array_equal(start["var"], np.ones(32))
    batch = next(batches())
    state, _ = training.step(training.init_state(), training.frozen, batch)
    after = training.variables(state)
    x = SPEC.normalize(batch["image"]).reshape(BATCH, -1) @ variables["params"]["backbone"]["Dense_0"]["kernel"]
    moved = after["batch_stats"]["backbone"]["BatchNorm_0"]
    np.testing.assert_allclose(moved["mean"], 0.01 * x.mean(0), atol=1e-6)  # Flax's momentum of 0.99
    np.testing.assert_allclose(moved["var"], 0.99 + 0.01 * x.var(0), atol=1e-6)

    step = make_eval_step(classifier, SPEC)
    weighted = {**batch, "weight": np.ones(BATCH, np.float32)}
    before = jax.tree.map(np.array, after)
    _, logits = step(after, weighted)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
    expected = classifier.backbone.apply(
        {name: tree["backbone"] for name, tree in after.items()}, SPEC.normalize(batch["image"]), train=False
    )
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    other = {**after, "batch_stats": jax.tree.map(lambda x: x + 1, after["batch_stats"])}
    assert np.abs(step(other, weighted)[1] - logits).max() > 0.01


@pytest.mark.parametrize("shape", [(32, 5), (8, 6, 7, 5)], ids=["2-D", "4-D"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_the_layer_is_its_closed_form(shape, affine, track):
    """Formulas of Ioffe & Szegedy 2015, with PyTorch's running statistics."""
    keep, epsilon = 0.8, 1e-3
    layer = BatchNorm(shape[-1], momentum=keep, epsilon=epsilon, affine=affine, track=track)
    rng = np.random.default_rng(0)
    batches = rng.normal(3.0, 2.0, (3, *shape)).astype(np.float32)
    variables = layer.init(jax.random.key(0), batches[0])
    assert set(variables) == ({"params"} if affine else set()) | ({"batch_stats"} if track else set())
    scale, bias = np.ones(shape[-1]), np.zeros(shape[-1])
    if affine:
        scale, bias = rng.normal(size=(2, shape[-1])).astype(np.float32)
        variables = {**variables, "params": {"scale": scale, "bias": bias}}
    positions, count = tuple(range(len(shape) - 1)), np.prod(shape[:-1])
    mean, var = np.zeros(shape[-1]), np.ones(shape[-1])
    for batch in batches:
        y, updated = layer.apply(variables, batch, train=True, mutable=["batch_stats"])
        wide = batch.astype(np.float64)
        m, v = wide.mean(positions), wide.var(positions)
        np.testing.assert_allclose(y, (wide - m) / np.sqrt(v + epsilon) * scale + bias, atol=2e-6)
        mean, var = keep * mean + (1 - keep) * m, keep * var + (1 - keep) * v * count / (count - 1)
        if track:
            variables = {**variables, **updated}
            np.testing.assert_allclose(updated["batch_stats"]["mean"], mean, atol=1e-6)
            np.testing.assert_allclose(updated["batch_stats"]["var"], var, rtol=1e-6)
    wide = batches[0].astype(np.float64)
    m, v = (mean, var) if track else (wide.mean(positions), wide.var(positions))
    y = layer.apply(variables, batches[0], train=False)
    np.testing.assert_allclose(y, (wide - m) / np.sqrt(v + epsilon) * scale + bias, atol=2e-6)
