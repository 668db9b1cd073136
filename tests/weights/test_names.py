import re
from types import SimpleNamespace

import numpy as np
import pytest

from finetune.errors import ModelError
from finetune.weights import names
from finetune.weights.names import (
    Drop,
    Rename,
    Split,
    apply_table,
    convolution,
    flat,
    identity,
    linear,
    pointwise,
    scalar,
    unbatched,
)
from finetune.weights.tensors import LazyArray

TABLE = (
    Drop(r".*\.num_batches_tracked"),
    Rename(r"(conv\d)\.weight", r"\1.kernel", convolution),
    Rename(r"(bn\d)\.running_(mean|var)", r"\1.\2", collection="batch_stats"),
    Rename(r"fc\.weight", "head.kernel", linear),
    Rename(r"(.*)\.bias", r"\1.bias"),
)


def test_names_paths_transforms_and_collections_follow_the_table():
    kernel = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    tensors = {"conv1.weight": kernel, "bn1.running_mean": np.ones(2), "fc.weight": np.arange(6.0).reshape(2, 3)}
    named = apply_table(tensors, TABLE)
    assert set(named.leaves) == {
        ("params", "conv1", "kernel"),
        ("batch_stats", "bn1", "mean"),
        ("params", "head", "kernel"),
    }
    assert named.leaves["params", "conv1", "kernel"].shape == (4, 5, 3, 2)
    assert np.asarray(named.leaves["params", "conv1", "kernel"])[1, 2, 0, 1] == kernel[1, 0, 1, 2]
    np.testing.assert_array_equal(named.leaves["params", "head", "kernel"], [[0, 3], [1, 4], [2, 5]])
    assert named.names["batch_stats", "bn1", "mean"] == "bn1.running_mean"


def test_dropped_and_unknown_tensors_are_listed():
    tensors = {"bn1.num_batches_tracked": np.zeros(()), "conv1.weight_v": np.zeros(2), "fc.bias": np.zeros(2)}
    named = apply_table(tensors, TABLE)
    assert named.dropped == ("bn1.num_batches_tracked",)
    assert named.unknown == ("conv1.weight_v",)
    assert set(named.leaves) == {("params", "fc", "bias")}


def test_the_first_matching_row_applies():
    table = (Rename("a", "first"), Rename(".*", "second"))
    named = apply_table({"b": np.zeros(1), "a": np.zeros(1)}, table)
    assert named.names == {("params", "first"): "a", ("params", "second"): "b"}


def test_a_pattern_has_to_match_the_whole_name():
    assert apply_table({"fc.weight.old": np.zeros((1, 1))}, TABLE).unknown == ("fc.weight.old",)


def test_two_tensors_for_one_leaf_are_refused():
    with pytest.raises(ModelError, match=r"'a\.w' and 'b\.w' would both become params/w"):
        apply_table({"a.w": np.zeros(1), "b.w": np.zeros(1)}, (Rename(r"[ab]\.w", "w"),))


def test_a_tensor_whose_rank_does_not_fit_its_transform_is_named():
    with pytest.raises(ModelError, match=r"'conv1.weight' has shape \(3, 3\), not that of convolution weights"):
        apply_table({"conv1.weight": np.zeros((3, 3))}, TABLE)


PACKED = (
    Split(r"(.*)\.qkv\.weight", (r"\1.q.kernel", r"\1.k.kernel", r"\1.v.kernel"), linear),
    Split(r"(.*)\.qkv\.running", (r"\1.q.mean", r"\1.k.mean", r"\1.v.mean"), collection="batch_stats"),
)


def test_a_packed_tensor_is_split_along_its_first_axis_before_its_parts_are_transformed():
    packed = np.arange(6 * 3.0).reshape(6, 3)
    named = apply_table({"a.qkv.weight": packed, "a.qkv.running": np.arange(3.0)}, PACKED)
    assert named.unknown == ()
    for i, letter in enumerate("qkv"):
        kernel = named.leaves["params", "a", letter, "kernel"]
        assert kernel.shape == (3, 2)
        np.testing.assert_array_equal(kernel, packed[2 * i : 2 * i + 2].T)
        np.testing.assert_array_equal(named.leaves["batch_stats", "a", letter, "mean"], [i])
        assert named.names["params", "a", letter, "kernel"] == "a.qkv.weight"


def test_a_tensor_that_cannot_be_split_evenly_is_named():
    with pytest.raises(ModelError, match=r"'a\.qkv\.weight' has shape \(4, 3\), not that of 3 equal parts"):
        apply_table({"a.qkv.weight": np.zeros((4, 3))}, PACKED)


def test_a_part_of_a_packed_tensor_for_a_leaf_that_is_taken_is_refused():
    table = (*PACKED, Rename(r"(.*)\.k\.weight", r"\1.k.kernel", linear))
    with pytest.raises(ModelError, match=r"'a\.qkv\.weight' and 'a\.k\.weight' would both become params/a/k/kernel"):
        apply_table({"a.qkv.weight": np.zeros((3, 1)), "a.k.weight": np.zeros((1, 1))}, table)


def test_a_tensor_is_read_when_one_of_its_leaves_is_and_not_before():
    reads = []

    def lazy(name, array):
        return LazyArray(array.shape, lambda: (reads.append(name), array)[1])

    tensors = {
        "conv1.weight": lazy("conv1", np.ones((2, 3, 4, 5))),
        "a.qkv.weight": lazy("qkv", np.arange(12.0).reshape(6, 2)),
        "bn1.num_batches_tracked": lazy("dropped", np.zeros(())),
        "other": lazy("unknown", np.zeros(())),
    }
    named = apply_table(tensors, (*TABLE, *PACKED))
    assert {key[-2:]: leaf.shape for key, leaf in named.leaves.items()} == {
        ("conv1", "kernel"): (4, 5, 3, 2),
        ("q", "kernel"): (2, 2),
        ("k", "kernel"): (2, 2),
        ("v", "kernel"): (2, 2),
    }
    assert reads == []
    np.testing.assert_array_equal(named.leaves["params", "a", "v", "kernel"], [[8, 10], [9, 11]])
    assert reads == ["qkv"]


@pytest.mark.parametrize(
    ("transform", "shape", "expected"),
    [
        (identity, (2, 3), (2, 3)),
        (linear, (2, 3), (3, 2)),
        (pointwise, (2, 3, 1, 1), (3, 2)),
        (pointwise, (2, 3), (3, 2)),
        (scalar, (1,), ()),
        (unbatched, (1, 4, 2), (4, 2)),
        (flat, (1, 1, 4), (4,)),
        (convolution, (2, 3, 4, 5), (4, 5, 3, 2)),
    ],
)
def test_each_transform_has_the_shape_that_it_announced(transform, shape, expected):
    leaf = apply_table({"a": np.zeros(shape)}, (Rename("a", "b", transform),)).leaves["params", "b"]
    assert leaf.shape == np.asarray(leaf).shape == expected


@pytest.mark.parametrize(("transform", "shape"), [(pointwise, (2, 3, 3, 3)), (scalar, (2,)), (unbatched, (2, 4))])
def test_a_transform_refuses_a_shape_that_it_would_scramble(transform, shape):
    with pytest.raises(ModelError, match=rf"tensor 'a' has shape .*, not that of {transform.__name__} weights"):
        apply_table({"a": np.zeros(shape)}, (Rename("a", "b", transform),))


def test_patterns_are_compiled_once_however_many_tensors_there_are(monkeypatch):
    compiled = []

    def compile_pattern(pattern):
        compiled.append(pattern)
        return re.compile(pattern)

    monkeypatch.setattr(names, "re", SimpleNamespace(compile=compile_pattern))
    table = tuple(Rename(rf"layers\.{i}\.weight", f"layers_{i}.kernel") for i in range(600))
    found = apply_table({f"layers.{i}.weight": np.zeros(1) for i in range(600)}, table)
    assert len(found.leaves) == 600
    assert len(compiled) == 600
