"""Flax's guide on transfer learning: the walk by the public API, and the guide's own step beside it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state
from flax.traverse_util import path_aware_map
from paths import ROOT

import finetune
from finetune.optim.schedules import StageLength
from finetune.recipe import TrainStage
from finetune.training.stage_trainer import StageTrainer

RULES = [
    {"match": "head", "name": "trainable", "optimizer": "adam", "learning_rate": 5e-3},
    {"match": "backbone", "frozen": True},
]


@pytest.mark.slow
def test_the_example_runs_as_it_says(run_example):
    out = run_example("transfer_learning.py")
    assert "1,930 of 1,822,474 values are in its state" in out
    assert float(re.search(r"the two heads differ by ([-+.\de]+)", out)[1]) <= 1e-6
    assert float(re.search(r"test accuracy ([-+.\de]+)", out)[1]) > 0.95


def test_every_step_is_the_guides(tiny_clip):
    """The guide: zero-initialized head, multi_transform of Adam at 5e-3 and set_to_zero, gradients of everything."""
    classifier, variables = finetune.build_classifier(tiny_clip, 10)
    labels = path_aware_map(lambda path, _: "frozen" if "backbone" in path else "trainable", variables["params"])
    tx = optax.multi_transform({"trainable": optax.adam(5e-3), "frozen": optax.set_to_zero()}, labels)
    own = jax.tree.map(jnp.copy, variables["params"])
    guide = train_state.TrainState.create(apply_fn=classifier.apply, params=own, tx=tx)
    spec = tiny_clip.image_spec

    @jax.jit
    def guides_step(state, batch):
        def loss_fn(params):
            logits = state.apply_fn({"params": params}, spec.normalize(batch["image"]))
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), loss

    training = StageTrainer(TrainStage(steps=10, partitions=RULES), classifier, variables, spec, StageLength(10))
    state, rng = training.init_state(), np.random.default_rng(0)
    for _ in range(10):
        batch = {
            "image": rng.integers(0, 256, (16, *spec.shape), dtype=np.uint8),
            "label": rng.integers(0, 10, 16).astype(np.int32),
        }
        guide, loss = guides_step(guide, batch)
        state, metrics = training.step(state, training.frozen, batch)
        np.testing.assert_allclose(metrics["loss"] / metrics["count"], loss, rtol=1e-6)
    ours = training.variables(state)["params"]
    for name in ("backbone", "head"):
        for a, b in zip(*map(jax.tree.leaves, (ours[name], guide.params[name])), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_examples_are_listed_where_a_reader_looks():
    root = ROOT
    guide = (root / "docs" / "guides.md").read_text(encoding="utf-8")
    for example in (root / "examples").glob("*.py"):
        assert f"examples/{example.name}" in guide
