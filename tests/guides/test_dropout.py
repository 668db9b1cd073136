"""Flax's guide on dropout: the guide's step is written out here."""

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
from finetune.optim.schedules import StageLength
from finetune.recipe import TrainStage
from finetune.training.stage_trainer import StageTrainer

SPEC = ImageSpec(8, 8, None, "bilinear", (0.0,), (1.0,))
SEED, BATCH = 3, 64


class MLP(nn.Module):
    """The guide's network: dropout behind the hidden layer."""

    @nn.compact
    def __call__(self, x, training: bool = False):
        x = nn.relu(nn.Dense(32)(x.reshape(len(x), -1)))
        x = nn.Dropout(rate=0.5, deterministic=not training)(x)
        return nn.Dense(10)(x)


class Deterministic(nn.Module):
    """The same, with the switch the other way round and a random stream of another name."""

    @nn.compact
    def __call__(self, x, deterministic: bool):
        x = nn.relu(nn.Dense(32)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.Dropout(0.5, rng_collection="noise")(x, deterministic=deterministic))


def guides_step(state, batch, dropout_key):
    dropout_train_key = jax.random.fold_in(key=dropout_key, data=state.step)

    def loss_fn(params):
        logits = state.apply_fn(
            {"params": params}, SPEC.normalize(batch["image"]), train=True, rngs={"dropout": dropout_train_key}
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


def prepare(module=None):
    module = module or MLP()
    switch = {"deterministic": True} if isinstance(module, Deterministic) else {}
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), **switch)
    example = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    classifier, variables = build_classifier((module, variables), 10, head_init=None, example=example)
    rules = [{"match": ".*", "optimizer": "adam", "learning_rate": 1e-3}]
    training = StageTrainer(
        TrainStage(steps=10, partitions=rules), classifier, variables, SPEC, StageLength(10), seed=SEED
    )
    return classifier, variables, training


def batches(count=5):
    digits = load_digits()
    for i in range(count):
        part = slice(i * BATCH, (i + 1) * BATCH)
        images = (digits.images[part] * 15.9).astype(np.uint8)[..., None]
        yield {"image": images, "label": digits.target[part].astype(np.int32)}


def test_every_step_is_the_guides():
    classifier, variables, training = prepare()
    key = jax.random.key(SEED)
    guide = train_state.TrainState.create(
        apply_fn=classifier.apply,
        params=jax.tree.map(jnp.copy, variables["params"]),
        tx=optax.adam(1e-3),
    )
    state = training.init_state()
    for batch in batches():
        guide, loss = jax.jit(guides_step)(guide, batch, key)
        state, metrics = training.step(state, training.frozen, batch)
        np.testing.assert_allclose(metrics["loss"] / metrics["count"], loss, rtol=1e-6)
    for expected, found in zip(*map(jax.tree.leaves, (guide.params, state.params)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("module", [MLP(), Deterministic()], ids=["training=", "deterministic="])
def test_a_step_is_reproducible_and_no_two_drop_the_same(module):
    _, _, training = prepare(module)
    batch = next(batches())

    def loss_at(step):
        state = training.init_state().replace(step=jnp.int32(step))
        return float(training.step(state, training.frozen, batch)[1]["loss"])

    losses = [loss_at(step) for step in range(5)]
    assert losses == [loss_at(step) for step in range(5)]
    assert len(set(losses)) == 5


@pytest.mark.parametrize("module", [MLP(), Deterministic()], ids=["training=", "deterministic="])
def test_nothing_drops_out_in_evaluation(module):
    classifier, variables, _ = prepare(module)
    batch = {**next(batches()), "weight": np.ones(BATCH, np.float32)}
    _, logits = make_eval_step(classifier, SPEC)(variables, batch)
    first, last = (variables["params"]["backbone"][name] for name in ("Dense_0", "Dense_1"))
    hidden = np.maximum(batch["image"].reshape(BATCH, -1) / 255 @ first["kernel"] + first["bias"], 0)
    np.testing.assert_allclose(logits, hidden @ last["kernel"] + last["bias"], atol=2e-6)
