import numpy as np
import pytest

from finetune.errors import ModelError
from finetune.weights.names import Drop, Rename, apply_table, convolution, linear

TABLE = (
    Drop(r".*\.num_batches_tracked"),
    Rename(r"(conv\d)\.weight", r"\1.kernel", convolution),
    Rename(r"(bn\d)\.running_(mean|var)", r"\1.\2", collection="batch_stats"),
    Rename(r"fc\.weight", "head.kernel", linear),
    Rename(r"(.*)\.bias", r"\1.bias"),
)


def test_names_paths_layouts_and_collections_follow_the_table():
    kernel = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    tensors = {"conv1.weight": kernel, "bn1.running_mean": np.ones(2), "fc.weight": np.arange(6.0).reshape(2, 3)}
    named = apply_table(tensors, TABLE)
    assert set(named.leaves) == {
        ("params", "conv1", "kernel"),
        ("batch_stats", "bn1", "mean"),
        ("params", "head", "kernel"),
    }
    assert named.leaves["params", "conv1", "kernel"].shape == (4, 5, 3, 2)
    assert named.leaves["params", "conv1", "kernel"][1, 2, 0, 1] == kernel[1, 0, 1, 2]
    np.testing.assert_array_equal(named.leaves["params", "head", "kernel"], [[0, 3], [1, 4], [2, 5]])
    assert named.names["batch_stats", "bn1", "mean"] == "bn1.running_mean"


def test_what_is_dropped_and_what_is_unknown_is_listed():
    tensors = {"bn1.num_batches_tracked": np.zeros(()), "conv1.weight_v": np.zeros(2), "fc.bias": np.zeros(2)}
    named = apply_table(tensors, TABLE)
    assert named.dropped == ("bn1.num_batches_tracked",)
    assert named.unknown == ("conv1.weight_v",)
    assert set(named.leaves) == {("params", "fc", "bias")}


def test_the_first_row_that_matches_decides():
    table = (Rename("a", "first"), Rename(".*", "second"))
    named = apply_table({"b": np.zeros(1), "a": np.zeros(1)}, table)
    assert named.names == {("params", "first"): "a", ("params", "second"): "b"}


def test_a_pattern_has_to_match_the_whole_name():
    assert apply_table({"fc.weight.old": np.zeros((1, 1))}, TABLE).unknown == ("fc.weight.old",)


def test_two_tensors_for_one_leaf_are_refused():
    with pytest.raises(ModelError, match=r"'a\.w' and 'b\.w' both claim params/w"):
        apply_table({"a.w": np.zeros(1), "b.w": np.zeros(1)}, (Rename(r"[ab]\.w", "w"),))


def test_a_tensor_of_another_rank_than_its_layout_is_named():
    with pytest.raises(ModelError, match=r"'conv1.weight' has shape \(3, 3\), not that of a convolution"):
        apply_table({"conv1.weight": np.zeros((3, 3))}, TABLE)
