import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from finetune.data.image_spec import ImageSpec
from finetune.models.classifier import build_classifier
from finetune.optim.optimizer import build_optimizer
from finetune.optim.partitions import merge, split_frozen
from finetune.recipe import Partition
from finetune.training.state import TrainState
from finetune.training.step import make_eval_step, make_train_step

SPEC = ImageSpec(8, 8, None, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
HEAD_ONLY = [Partition(match="head/.*", optimizer="adam", learning_rate=5e-3), Partition(match=".*", frozen=True)]
ALL = [Partition(match=".*", optimizer="adam", learning_rate=5e-3)]


class ConvNet(nn.Module):
    """A backbone with batch statistics and dropout."""

    def setup(self):
        self.conv = nn.Conv(6, (3, 3), use_bias=False)  # a bias here would get rounding noise for a gradient
        self.norm = nn.BatchNorm(momentum=0.9)
        self.dropout = nn.Dropout(0.5)

    def __call__(self, x, train=False):
        x = self.norm(self.conv(x), use_running_average=not train)
        return self.dropout(nn.relu(x), deterministic=not train).mean((1, 2))


def a_batch(size=6, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, size).astype(np.int32),
    }


def prepare(rules, dropout=0.0, backbone=None):
    module = backbone or ConvNet()
    variables = module.init(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
    classifier, variables = build_classifier(
        (module, variables), 3, head_init="lecun_normal", dropout=dropout, image_size=8
    )
    optimizer = build_optimizer(rules, variables["params"], total_steps=10)
    params, frozen = split_frozen(variables["params"], rules)
    collections = {"batch_stats": variables["batch_stats"]}
    state = TrainState.create(params, collections, optimizer, jax.random.key(7))
    return classifier, variables, optimizer, state, frozen


def leaves_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_three_steps_equal_the_guides_step_written_out():
    classifier, variables, optimizer, state, frozen = prepare(ALL)
    step, batch = make_train_step(classifier, optimizer, SPEC), a_batch()
    for _ in range(3):
        state, _ = step(state, frozen, batch)

    params, stats, tx = variables["params"], variables["batch_stats"], optax.adam(5e-3)
    opt_state = tx.init(params)
    pixels = (batch["image"] / 255.0 - np.array(SPEC.mean)) / np.array(SPEC.std)
    for number in range(3):

        def loss_fn(params, stats=stats, number=number):
            logits, updated = classifier.apply(
                {"params": params, "batch_stats": stats},
                jnp.asarray(pixels, jnp.float32),
                train=True,
                rngs={"dropout": jax.random.fold_in(jax.random.key(7), number)},
                mutable=["batch_stats"],
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), updated

        gradients, updated = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        params, stats = optax.apply_updates(params, updates), updated["batch_stats"]
    for ours, guide in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, guide, atol=1e-5)
    for ours, guide in zip(jax.tree.leaves(state.collections["batch_stats"]), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(ours, guide, atol=1e-5)


def test_a_frozen_backbone_keeps_parameters_and_running_statistics_bit_for_bit():
    classifier, variables, optimizer, state, frozen = prepare(HEAD_ONLY)
    step = make_train_step(classifier, optimizer, SPEC)
    for seed in range(3):
        state, _ = step(state, frozen, a_batch(seed=seed))
    whole = merge(frozen, state.params)
    assert leaves_equal(whole["backbone"], variables["params"]["backbone"])
    assert leaves_equal(state.collections["batch_stats"], variables["batch_stats"])
    assert not np.array_equal(whole["head"]["kernel"], variables["params"]["head"]["kernel"])


def test_running_statistics_move_when_the_backbone_learns():
    classifier, variables, optimizer, state, frozen = prepare(ALL)
    state, _ = make_train_step(classifier, optimizer, SPEC)(state, frozen, a_batch())
    assert not leaves_equal(state.collections["batch_stats"], variables["batch_stats"])


def test_neither_state_nor_optimizer_holds_an_array_for_a_frozen_leaf():
    _, variables, _, state, frozen = prepare(HEAD_ONLY)
    head = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["head"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == head
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * head
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(variables["params"]["backbone"]))


def test_a_step_donates_its_state_and_leaves_the_callers_variables_alone():
    classifier, variables, optimizer, state, frozen = prepare(HEAD_ONLY)
    before = jax.tree.leaves(state.params)
    make_train_step(classifier, optimizer, SPEC)(state, frozen, a_batch())
    assert all(leaf.is_deleted() for leaf in before)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((variables, frozen)))


def test_dropout_differs_at_every_step_and_repeats_with_the_seed():
    def losses():
        rules = [Partition(match=".*", optimizer="sgd", momentum=0.0, learning_rate=1e-30)]  # nothing moves
        classifier, _, optimizer, state, frozen = prepare(rules, dropout=0.5)
        step, found = make_train_step(classifier, optimizer, SPEC), []
        for _ in range(4):
            state, metrics = step(state, frozen, a_batch())
            found.append(float(metrics["loss"]))
        return found

    first = losses()
    assert len(set(first)) == 4
    assert losses() == first


def test_evaluation_counts_every_image_once_whatever_the_padding():
    classifier, variables, *_ = prepare(ALL)
    step, batch = make_eval_step(classifier, SPEC), a_batch(5)
    padded = {name: np.concatenate([array, array[:3]]) for name, array in batch.items()}
    exact, logits = step(variables, {**batch, "weight": np.ones(5, np.float32)})
    filled, _ = step(variables, {**padded, "weight": np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)})
    for name in ("loss", "correct", "count"):
        np.testing.assert_allclose(exact[name], filled[name], rtol=1e-6)
    assert float(exact["correct"]) == (np.asarray(logits).argmax(-1) == batch["label"]).sum()


def flops(jitted, *arguments):
    return jitted.lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
def test_a_frozen_step_costs_the_flops_of_forward_alone(tiny_clip, optimizer_name):
    classifier, variables = build_classifier(tiny_clip, 10)
    rules = [
        Partition(match="head/.*", optimizer=optimizer_name, learning_rate=1e-3),
        Partition(match=".*", frozen=True),
    ]
    optimizer = build_optimizer(rules, variables["params"], total_steps=10)
    params, frozen = split_frozen(variables["params"], rules)
    state = TrainState.create(params, {}, optimizer, jax.random.key(0))
    batch = {"image": np.zeros((32, 32, 32, 3), np.uint8), "label": np.zeros(32, np.int32)}
    step = flops(make_train_step(classifier, optimizer, tiny_clip.image_spec), state, frozen, batch)
    forward = flops(
        make_eval_step(classifier, tiny_clip.image_spec), variables, {**batch, "weight": np.ones(32, np.float32)}
    )
    assert step < 1.03 * forward
