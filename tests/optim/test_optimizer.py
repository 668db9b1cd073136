import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from finetune.errors import PartitionError
from finetune.optim.optimizer import build_optimizer, learning_rates
from finetune.optim.schedules import StageLength
from finetune.recipe import Partition

RNG = np.random.default_rng(0)
PARAMS = {
    "backbone": {"kernel": RNG.standard_normal((3, 2)).astype(np.float32), "scale": np.ones(2, np.float32)},
    "head": {"kernel": RNG.standard_normal((2, 4)).astype(np.float32), "bias": np.ones(4, np.float32)},
}
STEPS = 6
GRADIENTS = [jax.tree.map(lambda p: RNG.standard_normal(p.shape).astype(np.float32), PARAMS) for _ in range(STEPS)]


def sgd(p, gradients, rate, decay, momentum=0.9):
    trace = 0.0
    for step, g in enumerate(gradients):
        trace = g + decay * p + momentum * trace
        p = p - rate(step) * trace
    return p


def adam(p, gradients, rate, decay):
    return adamw(p, gradients, rate, 0.0, coupled=decay)


def adamw(p, gradients, rate, decay, coupled=0.0):
    m = v = 0.0
    for step, g in enumerate(gradients):
        g = g + coupled * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        unbiased = m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
        p = p - rate(step) * (unbiased + decay * p)
    return p


def train(optimizer, params, gradients):
    """Parameters after one update for each of the gradients."""
    params = jax.tree.map(jnp.asarray, params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return flatten_dict(params, sep="/")


def closed_form(rule, path, rate, decay):
    leaf = flatten_dict(PARAMS, sep="/")[path].astype(np.float64)
    gradients = [flatten_dict(g, sep="/")[path].astype(np.float64) for g in GRADIENTS]
    return rule(leaf, gradients, rate, decay if leaf.ndim > 1 else 0.0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("name", "rule"), [("sgd", sgd), ("adam", adam), ("adamw", adamw)])
def test_updates_are_those_of_the_closed_form_and_only_kernels_decay(name, rule, decay):
    partition = Partition(match=".*", optimizer=name, learning_rate=0.02, weight_decay=decay)
    after = train(build_optimizer([partition], PARAMS, total_steps=STEPS), PARAMS, GRADIENTS)
    for path, leaf in after.items():
        np.testing.assert_allclose(leaf, closed_form(rule, path, lambda _: 0.02, decay), atol=1e-6, err_msg=path)


def test_sgd_without_momentum_is_plain_gradient_descent():
    partition = Partition(match=".*", optimizer={"name": "sgd", "momentum": 0.0}, learning_rate=0.05)
    after = train(build_optimizer([partition], PARAMS, total_steps=STEPS), PARAMS, GRADIENTS)
    expected = PARAMS["head"]["kernel"] - 0.05 * sum(g["head"]["kernel"] for g in GRADIENTS)
    np.testing.assert_allclose(after["head/kernel"], expected, atol=1e-6)


def test_each_partition_learns_by_its_own_optimizer_and_schedule():
    schedule = {"name": "linear", "warmup": 0.5}
    partitions = [
        Partition(match="head/.*", optimizer="sgd", learning_rate=0.1, schedule=schedule),
        Partition(match="backbone/kernel", optimizer="adamw", learning_rate=0.01, weight_decay=0.2),
        Partition(match=".*", frozen=True),
    ]
    after = train(build_optimizer(partitions, PARAMS, total_steps=STEPS), PARAMS, GRADIENTS)
    ramp = [0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.2 / 3, 0.1 / 3]
    head = closed_form(sgd, "head/kernel", lambda step: ramp[step], 0.0)
    np.testing.assert_allclose(after["head/kernel"], head, atol=1e-6)
    kernel = closed_form(adamw, "backbone/kernel", lambda _: 0.01, 0.2)
    np.testing.assert_allclose(after["backbone/kernel"], kernel, atol=1e-6)
    np.testing.assert_array_equal(after["backbone/scale"], PARAMS["backbone"]["scale"])


HEAD_ONLY = [Partition(match="head/.*", learning_rate=0.1), Partition(match=".*", frozen=True)]


def test_frozen_partitions_hold_no_optimizer_state():
    state = build_optimizer(HEAD_ONLY, PARAMS, total_steps=STEPS).init(PARAMS)
    assert jax.tree.leaves(state.inner_states["frozen"]) == []
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert shapes == [(2, 4), (2, 4), (4,), (4,)]  # two moments of the head's kernel and bias


def test_the_trainable_subtree_gets_the_updates_that_the_full_tree_gives_it():
    optimizer = build_optimizer(HEAD_ONLY, PARAMS, total_steps=STEPS)
    trainable = {"head": PARAMS["head"]}
    full = train(optimizer, PARAMS, GRADIENTS)
    part = train(optimizer, trainable, [{"head": gradient["head"]} for gradient in GRADIENTS])
    assert set(part) == {"head/kernel", "head/bias"}
    for path, leaf in part.items():
        np.testing.assert_array_equal(leaf, full[path])
        assert np.abs(leaf - flatten_dict(PARAMS, sep="/")[path]).max() > 0.01
    np.testing.assert_array_equal(full["backbone/kernel"], PARAMS["backbone"]["kernel"])


def test_uncovered_parameters_and_idle_rules_are_refused():
    with pytest.raises(PartitionError, match="backbone/kernel"):
        build_optimizer(HEAD_ONLY[:1], PARAMS, total_steps=STEPS)
    with pytest.raises(PartitionError, match=r"'neck/\.\*' takes no parameter"):
        build_optimizer([{"match": "neck/.*", "frozen": True}, *HEAD_ONLY], PARAMS, total_steps=STEPS)


def test_layer_decay_scales_every_leafs_update_by_the_blocks_above_it(tiny_clip):
    params = {"backbone": tiny_clip.variables["params"], "head": {"kernel": np.zeros((2, 2), np.float32)}}
    gradients = [jax.tree.map(np.ones_like, params)]
    rules = [{"match": ".*", "optimizer": {"name": "sgd", "momentum": 0.0}, "learning_rate": 0.1, "layer_decay": 0.5}]
    after = train(build_optimizer(rules, params, total_steps=1), params, gradients)
    step = {path: np.abs(leaf - flatten_dict(params, sep="/")[path]).mean() for path, leaf in after.items()}
    expected = {"head/kernel": 0.1, "backbone/post_layernorm/scale": 0.1, "backbone/pre_layrnorm/bias": 0.1 / 2**5}
    expected |= {f"backbone/encoder/layers/{i}/mlp/fc1/kernel": 0.1 / 2 ** (4 - i) for i in range(4)}
    for path, size in expected.items():
        np.testing.assert_allclose(step[path], size, rtol=1e-4, err_msg=path)


def test_no_norm_bias_or_embedding_decays_unless_asked():
    params = {
        "norm": {"scale": np.ones(3, np.float32)},
        "position": {"embedding": np.ones((4, 3), np.float32)},
        "fc": {"kernel": np.ones((3, 3), np.float32), "bias": np.ones(3, np.float32)},
    }
    gradients = [jax.tree.map(np.zeros_like, params)]
    rule = {"match": ".*", "learning_rate": 0.1, "weight_decay": 0.5}
    after = train(build_optimizer([rule], params, total_steps=1), params, gradients)
    assert [path for path, leaf in after.items() if np.all(leaf < 1)] == ["fc/kernel"]
    after = train(build_optimizer([{**rule, "weight_decay_on": "all"}], params, total_steps=1), params, gradients)
    assert all(np.all(leaf < 1) for leaf in after.values())


def test_a_duration_in_epochs_needs_to_know_an_epoch():
    rule = {"match": ".*", "learning_rate": 0.1, "schedule": {"name": "cosine", "warmup": {"epochs": 1}}}
    with pytest.raises(PartitionError, match="a duration in epochs needs steps_per_epoch"):
        build_optimizer([rule], PARAMS, total_steps=10)
    build_optimizer([rule], PARAMS, total_steps=10, steps_per_epoch=3)


def test_the_learning_rates_of_trainable_partitions_are_listed_by_name():
    found = learning_rates([Partition(match="head/.*", learning_rate=0.3), HEAD_ONLY[1]], StageLength(10))
    assert list(found) == ["head/.*"]
    assert float(found["head/.*"](0)) == pytest.approx(0.3)


def test_a_kernel_that_adapters_stand_for_is_refused_and_its_adapters_are_trained():
    rules = [{"match": "head/kernel", "learning_rate": 0.1, "lora": {"rank": 1}}, {"match": ".*", "frozen": True}]
    optimizer = build_optimizer(rules, PARAMS, total_steps=STEPS)
    with pytest.raises(PartitionError, match=r"'head/kernel': lora: head/kernel would be trained itself.*StageTrainer"):
        optimizer.init(PARAMS)
    adapters = {"lora": {"head": {"lora_a": np.ones((2, 1), np.float32), "lora_b": np.ones((1, 4), np.float32)}}}
    after = train(optimizer, adapters, [jax.tree.map(np.ones_like, adapters)])
    assert all(np.all(leaf < 1) for leaf in after.values())


def test_a_pull_to_pretrained_values_is_refused_since_no_optimizer_has_it():
    with pytest.raises(PartitionError, match=r"'\.\*': l2_sp 0\.1: .*StageTrainer"):
        build_optimizer([{"match": ".*", "learning_rate": 0.1, "l2_sp": 0.1}], PARAMS, total_steps=STEPS)
