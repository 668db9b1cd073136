import jax
import numpy as np

from finetune.trees import flatten, hash_leaves, hash_tree, map_paths, merge, module_of, pick, unflatten

TREE = {
    "backbone": {"fc": {"kernel": np.ones((2, 2)), "bias": np.zeros(2)}, "scale": np.ones(2)},
    "head": {"kernel": np.full((2, 3), 2.0)},
}


def test_flattening_and_unflattening_gives_the_same_tree_with_the_same_leaves():
    leaves = flatten(TREE)
    assert list(leaves) == ["backbone/fc/kernel", "backbone/fc/bias", "backbone/scale", "head/kernel"]
    again = unflatten(leaves)
    assert jax.tree.structure(again) == jax.tree.structure(TREE)
    assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(TREE), strict=True))


def test_the_parts_of_a_tree_merge_to_the_whole_and_are_not_copied():
    part, rest = pick(TREE, {"head/kernel", "backbone/scale"}), pick(TREE, {"backbone/fc/kernel", "backbone/fc/bias"})
    assert part["head"]["kernel"] is TREE["head"]["kernel"]
    assert flatten(merge(rest, part)).keys() == flatten(TREE).keys()
    assert pick(TREE, set()) == {}


def test_a_later_tree_replaces_the_leaves_of_an_earlier_one():
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}) == {"a": {"b": 1, "c": 3}}


def test_a_function_of_paths_sees_every_leaf():
    assert map_paths(lambda path, leaf: f"{path}:{leaf.ndim}", TREE)["backbone"]["scale"] == "backbone/scale:1"
    assert module_of("backbone/fc/kernel") == "backbone/fc"
    assert module_of("scale") == ""


def test_one_flipped_bit_dtype_shape_or_name_changes_the_hash_and_the_order_of_keys_does_not():
    reference = hash_tree(TREE)
    assert hash_tree(dict(reversed(TREE.items()))) == reference
    for other in (np.array([1, np.nextafter(1, 2)]), np.ones(2, np.float32), np.ones((1, 2))):
        changed = merge(TREE, {"backbone": {"scale": other}})
        assert hash_tree(changed) != reference
        differing = {path for path, value in hash_leaves(changed).items() if hash_leaves(TREE)[path] != value}
        assert differing == {"backbone/scale"}
    assert hash_tree({"backbone": TREE["backbone"], "top": TREE["head"]}) != reference
