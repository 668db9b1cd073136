import jax
import numpy as np
import optax
import pytest

from finetune.optim.optimizer import build_optimizer
from finetune.optim.parameter_plan import ParameterPlan
from finetune.optim.transfer_state import transfer_state
from finetune.recipe import Partition
from finetune.trees import pick

PARAMS = {
    "backbone": {"kernel": np.full((3, 2), 0.5, np.float32)},
    "head": {"kernel": np.ones((2, 4), np.float32), "bias": np.zeros(4, np.float32)},
}
SCHEDULE = {"name": "linear"}
HEAD = Partition(match="head", learning_rate=0.1, schedule=SCHEDULE)
PROBE = [HEAD, Partition(match="backbone", frozen=True)]
ALL = [HEAD, Partition(match="backbone", learning_rate=0.01)]


def fresh(rules):
    plan = ParameterPlan.make({"params": PARAMS}, rules)
    params = jax.tree.map(jax.numpy.asarray, pick(PARAMS, plan.trainable))
    optimizer = build_optimizer(rules, PARAMS, total_steps=10)
    return optimizer, params, optimizer.init(params)


@pytest.fixture(scope="module")
def trained():
    optimizer, params, state = fresh(PROBE)
    for _ in range(3):
        updates, state = optimizer.update(jax.tree.map(jax.numpy.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    return state


def test_moments_and_their_count_go_on_and_the_schedule_begins_anew(trained):
    _, _, new = fresh(ALL)
    state, carried = transfer_state(trained, new, PROBE, ALL)
    assert carried == ["head"]
    core, _, rate = state.inner_states["head"].inner_state
    moments = optax.tree.get(core, "mu")
    np.testing.assert_array_equal(
        moments["head"]["kernel"], optax.tree.get(trained.inner_states["head"].inner_state[0], "mu")["head"]["kernel"]
    )
    assert int(optax.tree.get(core, "count")) == 3
    assert int(optax.tree.get(rate, "count")) == 0
    untouched = optax.tree.get(state.inner_states["backbone"].inner_state[0], "mu")
    assert not np.any(untouched["backbone"]["kernel"])
    assert jax.tree.structure(state) == jax.tree.structure(new)


def test_part_of_an_earlier_partition_takes_its_part_of_the_state(trained):
    rules = [
        Partition(match="head/kernel", learning_rate=0.1),
        Partition(match="head/bias", learning_rate=0.2),
        PROBE[1],
    ]
    _, _, new = fresh(rules)
    state, carried = transfer_state(trained, new, PROBE, rules)
    assert carried == ["head/kernel", "head/bias"]
    assert np.all(optax.tree.get(state.inner_states["head/bias"].inner_state[0], "mu")["head"]["bias"] > 0)


def test_another_optimizer_or_a_partition_with_new_leaves_begins_anew(trained):
    for rules in (
        [Partition(match=".*", learning_rate=0.1)],
        [Partition(match="head", optimizer="lion", learning_rate=0.1), PROBE[1]],
    ):
        _, _, new = fresh(rules)
        state, carried = transfer_state(trained, new, PROBE, rules)
        assert carried == []
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True))


def test_adapters_which_are_drawn_anew_begin_without_the_moments_of_merged_ones():
    rules = [HEAD, Partition(match="backbone/kernel", learning_rate=0.1, lora={"rank": 1})]
    adapters = {"backbone": {"lora_a": np.ones((3, 1), np.float32), "lora_b": np.ones((1, 2), np.float32)}}
    params = jax.tree.map(jax.numpy.asarray, {"head": PARAMS["head"], "lora": adapters})
    optimizer = build_optimizer(rules, PARAMS, total_steps=10)
    new = optimizer.init(params)
    _, old = optimizer.update(jax.tree.map(jax.numpy.ones_like, params), new, params)
    state, carried = transfer_state(old, new, rules, rules)
    assert carried == ["head"]
    adapted = [states.inner_states["backbone/kernel"] for states in (state, new)]
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, adapted), strict=True))
