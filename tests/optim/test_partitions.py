import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from finetune.errors import PartitionError
from finetune.optim.partitions import kernel_of, label_params
from finetune.recipe import Partition

PARAMS = {
    "backbone": {"layers": {"0": {"kernel": np.zeros((2, 2))}, "10": {"kernel": np.ones((2, 2))}}, "norm": np.ones(2)},
    "head": {"kernel": np.full((2, 3), 2.0), "bias": np.full(3, 3.0)},
}
HEAD = Partition(match="head/.*", learning_rate=1e-3)
FROZEN = Partition(match=".*", frozen=True)


def flat(tree):
    return flatten_dict(tree, sep="/")


def test_the_first_rule_that_matches_decides():
    rules = [("head/bias", "bias"), ("head/.*", "head"), (".*", "rest"), ("backbone/.*", "never")]
    assert flat(label_params(PARAMS, rules)) == {
        "head/bias": "bias",
        "head/kernel": "head",
        "backbone/norm": "rest",
        "backbone/layers/0/kernel": "rest",
        "backbone/layers/10/kernel": "rest",
    }


def test_labels_have_the_shape_of_the_tree_and_the_names_of_the_partitions():
    labels = label_params(PARAMS, [HEAD, FROZEN])
    assert jax.tree.structure(labels) == jax.tree.structure(PARAMS)
    assert labels["head"]["bias"] == "head/.*"
    assert labels["backbone"]["norm"] == "frozen"
    named = Partition(match="head/.*", name="classifier", learning_rate=1e-3)
    assert label_params(PARAMS, [named, FROZEN])["head"]["bias"] == "classifier"


def test_a_rule_has_to_match_the_whole_path():
    with pytest.raises(PartitionError, match="backbone/layers/10/kernel"):
        label_params({"backbone": {"layers": {"10": {"kernel": 0}}}}, [("backbone/layers/1", "a"), ("layers/.*", "b")])


def test_leaves_that_no_rule_covers_are_named_with_the_way_out():
    rules = [{"match": "head/kernel", "learning_rate": 0.1}, {"match": "backbone/.*", "frozen": True}]
    with pytest.raises(
        PartitionError, match=r"1 parameters match no rule, such as head/bias.*add one last rule such as"
    ):
        label_params(PARAMS, rules)


def test_a_pattern_that_is_no_regular_expression_is_named():
    with pytest.raises(PartitionError, match=r"'head/\(' is not a regular expression"):
        label_params(PARAMS, [("head/(", "a")])


def test_a_rule_given_as_a_dict_is_checked_like_a_recipes():
    with pytest.raises(PartitionError, match=r"learning_rte: .*not permitted"):
        label_params(PARAMS, [{"match": ".*", "learning_rte": 0.1}])


def test_an_adapter_belongs_to_the_partition_of_its_kernel():
    assert kernel_of("lora/backbone/fc/lora_a") == "backbone/fc/kernel"
    assert kernel_of("backbone/fc/kernel") == "backbone/fc/kernel"
