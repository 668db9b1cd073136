import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from finetune.errors import PartitionError
from finetune.models.depth import DepthOrder
from finetune.optim.parameter_plan import ParameterPlan
from finetune.recipe import Partition
from finetune.trees import flatten

ORDER = DepthOrder(stem=r"stem/.*", blocks=r"block_(\d+)/.*")
VARIABLES = {
    "params": {
        "backbone": {
            "stem": {"kernel": np.ones((2, 2))},
            "block_0": {"kernel": np.ones((2, 2)), "norm": {"scale": np.ones(2), "bias": np.ones(2)}},
            "block_1": {"kernel": np.ones((2, 2)), "norm": {"scale": np.ones(2), "bias": np.ones(2)}},
        },
        "head": {"kernel": np.ones((2, 3)), "bias": np.ones(3)},
    },
    "batch_stats": {
        "backbone": {f"block_{i}": {"norm": {"mean": np.zeros(2)}, "plain": {"mean": np.zeros(2)}} for i in range(2)}
    },
    "memory": {"backbone": {"block_1": {"last": np.zeros(2)}, "stem": {"last": np.zeros(2)}}},
}
HEAD = Partition(match="head", learning_rate=0.1)
LAST = Partition(match="blocks[-1:]", name="last", learning_rate=0.01, weight_decay=0.1)
REST = Partition(match=".*", frozen=True)


def plan(*partitions):
    return ParameterPlan.make(VARIABLES, partitions, ORDER)


def test_the_first_partition_that_matches_takes_a_parameter():
    assert plan(HEAD, LAST, REST).labels == {
        "backbone/stem/kernel": "frozen",
        "backbone/block_0/kernel": "frozen",
        "backbone/block_0/norm/scale": "frozen",
        "backbone/block_0/norm/bias": "frozen",
        "backbone/block_1/kernel": "last",
        "backbone/block_1/norm/scale": "last",
        "backbone/block_1/norm/bias": "last",
        "head/kernel": "head",
        "head/bias": "head",
    }


def test_statistics_follow_their_norms_scale_and_other_state_its_own_path():
    made = plan(HEAD, LAST, REST)
    assert made.frozen_norms == {"backbone/block_0/norm", "backbone/block_0/plain"}
    assert made.frozen_state == {"memory/backbone/stem/last"}
    assert made.freezes("batch_stats/backbone/block_0/norm/mean")
    assert not made.freezes("batch_stats/backbone/block_1/plain/mean")


def test_a_norm_whose_scale_and_bias_differ_follows_its_scale():
    biases = Partition(match="biases", learning_rate=0.1)
    assert "backbone/block_1/norm" in plan(biases, HEAD, REST).frozen_norms


def test_a_partition_may_say_what_becomes_of_its_statistics():
    frozen = LAST.model_copy(update={"batch_norm": "frozen"})
    updated = REST.model_copy(update={"batch_norm": "update"})
    assert "backbone/block_1/norm" in plan(HEAD, frozen, REST).frozen_norms
    assert plan(HEAD, LAST, updated).frozen_norms == frozenset()


def test_what_a_stage_changes_is_what_it_trains_and_the_state_that_it_does_not_freeze():
    assert plan(HEAD, REST).changes(VARIABLES) == {"params/head/kernel", "params/head/bias"}
    assert plan(HEAD, LAST, REST).changes(VARIABLES) == {
        *(f"params/backbone/block_1/{leaf}" for leaf in ("kernel", "norm/scale", "norm/bias")),
        *(f"params/head/{leaf}" for leaf in ("kernel", "bias")),
        *(f"batch_stats/backbone/block_1/{norm}/mean" for norm in ("norm", "plain")),
        "memory/backbone/block_1/last",
    }


def test_layer_decay_counts_the_blocks_above_a_parameter():
    decayed = Partition(match="backbone", learning_rate=0.1, layer_decay=0.5)
    made = plan(HEAD, decayed)
    rates = [made.rate_factor(f"backbone/{part}/kernel") for part in ("stem", "block_0", "block_1")]
    assert rates == [0.5**3, 0.5**2, 0.5]
    assert made.rate_factor("head/kernel") == 1.0


def test_weight_decay_acts_on_kernels_alone_unless_told_otherwise():
    params = VARIABLES["params"]["backbone"]["block_1"]
    everything = LAST.model_copy(update={"weight_decay_on": "all"})
    for last, on_scale in ((LAST, False), (everything, True)):
        made = plan(HEAD, last, REST)
        assert made.decays("backbone/block_1/kernel", params["kernel"])
        assert made.decays("backbone/block_1/norm/scale", params["norm"]["scale"]) is on_scale
        assert not made.decays("head/kernel", VARIABLES["params"]["head"]["kernel"])


def test_biases_and_scales_with_several_axes_do_not_decay():
    attention = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)
    params = jax.eval_shape(attention.init, jax.random.key(0), jnp.zeros((1, 3, 8)))["params"]
    params["logit_scale"] = jnp.zeros((2, 1, 1))
    made = ParameterPlan.make({"params": params}, [Partition(match=".*", learning_rate=0.1, weight_decay=0.1)])
    leaves = flatten(params)
    assert leaves["query/bias"].ndim == 2
    assert {path for path, leaf in leaves.items() if made.decays(path, leaf)} == {
        f"{part}/kernel" for part in ("query", "key", "value", "out")
    }


@pytest.mark.parametrize(
    ("matches", "message"),
    [
        (["neck/.*", ".*"], r"'neck/\.\*' takes no parameter: no parameter matches; paths look like"),
        ([".*", "head/.*"], r"'head/\.\*' takes no parameter: earlier rules take all that it matches"),
    ],
)
def test_a_rule_that_takes_no_parameter_is_refused(matches, message):
    with pytest.raises(PartitionError, match=message):
        plan(*(Partition(match=match, name=f"p{i}", learning_rate=0.1) for i, match in enumerate(matches)))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "norms", "learning_rate": 0.1, "weight_decay": 0.1}, r"'norms': weight_decay 0.1 has no effect"),
        ({"match": "head", "learning_rate": 0.1, "batch_norm": "frozen"}, r"batch_norm"),
        ({"match": "backbone/stem/kernel", "frozen": True, "batch_norm": "update"}, r"batch_norm: update has no"),
        ({"match": "head/.*", "learning_rate": 0.1, "layer_decay": 0.5}, r"layer_decay"),
    ],
)
def test_an_option_without_effect_on_what_its_partition_took_is_refused(rule, message):
    with pytest.raises((PartitionError, ValidationError), match=message):
        plan(Partition(**rule), HEAD.model_copy(update={"name": "rest", "match": ".*"}))


def test_weight_decay_of_norms_is_an_effect_where_it_is_asked_for():
    norms = Partition(match="norms", learning_rate=0.1, weight_decay=0.1, weight_decay_on="all")
    made = plan(norms, HEAD, REST)
    assert made.decays("backbone/block_0/norm/scale", VARIABLES["params"]["backbone"]["block_0"]["norm"]["scale"])


def test_one_line_for_each_partition_says_how_many_parameters_it_took():
    assert plan(HEAD, LAST, REST).describe(VARIABLES["params"]) == [
        "frozen: 12 parameters, frozen",
        "last: 8 parameters, adamw, peak learning rate 0.01",
        "head: 9 parameters, adamw, peak learning rate 0.1",
    ]


def test_the_order_of_blocks_is_the_loaded_modules_own():
    """Two modules with the same paths, counted in opposite directions."""

    class Forward(nn.Module):
        depth_order = DepthOrder(stem="(?!)", blocks=r"layer_(\d+)/.*")

        @nn.compact
        def __call__(self, x):
            for i in range(3):
                x = nn.Dense(4, name=f"layer_{i}")(x)
            return x

    params = {"backbone": Forward().init(jax.random.key(0), np.ones((1, 4)))["params"], "head": {"bias": np.ones(2)}}
    made = ParameterPlan.make({"params": params}, [HEAD, LAST, REST], Forward.depth_order)
    assert {path for path, label in made.labels.items() if label == "last"} == {
        "backbone/layer_2/kernel",
        "backbone/layer_2/bias",
    }
    with pytest.raises(PartitionError, match="order of this backbone's blocks is not known"):
        ParameterPlan.make({"params": params}, [HEAD, LAST, REST])
