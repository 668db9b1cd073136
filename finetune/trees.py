"""Nested dicts of arrays by path: a leaf's path is its keys joined by ``/``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Tree = Mapping[str, Any]
Variables = Mapping[str, Any]  # collection ("params", "batch_stats", ...) -> tree of arrays


def flatten(tree: Tree) -> dict[str, Any]:
    """path -> leaf, in the tree's order."""
    return flatten_dict(dict(tree), sep="/")


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return unflatten_dict(dict(leaves), sep="/")


def paths_of(tree: Tree) -> list[str]:
    return list(flatten(tree))


def pick(tree: Tree, paths: Collection[str]) -> dict[str, Any]:
    """The part of a tree that has these paths."""
    return unflatten({path: leaf for path, leaf in flatten(tree).items() if path in paths})


def merge(*trees: Tree) -> dict[str, Any]:
    """One tree of the leaves of all; a later tree's leaf replaces an earlier one's."""
    leaves: dict[str, Any] = {}
    for tree in trees:
        leaves |= flatten(tree)
    return unflatten(leaves)


def map_paths(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """``function(path, leaf)`` of every leaf of nested dicts; what optax masks out stays masked."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: function("/".join(key.key for key in keys), leaf), tree)


@jax.jit
def interpolate(start: Any, end: Any, share: float) -> Any:
    """``start + share * (end - start)`` of every leaf: where both are equal, exactly that. Integers are the end's."""

    def mixed(first: Any, second: Any) -> Any:
        return first + share * (second - first) if jnp.issubdtype(second.dtype, jnp.inexact) else second

    return jax.tree.map(mixed, start, end)


def are_same(one: Any, other: Any) -> bool:
    """Whether two trees hold the very same arrays, not equal ones, in the same places."""
    ours, theirs = dict(jax.tree.leaves_with_path(one)), dict(jax.tree.leaves_with_path(other))
    return ours.keys() == theirs.keys() and all(leaf is theirs[path] for path, leaf in ours.items())


def module_of(path: str) -> str:
    """The path of the module that a leaf belongs to."""
    return path.rpartition("/")[0]


def count_values(tree: Any) -> int:
    """How many numbers the arrays of a tree hold."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))


def hash_leaves(tree: Tree) -> dict[str, str]:
    """path -> SHA-256 over dtype, shape and bytes of the array."""
    return {path: hash_array(leaf) for path, leaf in flatten(tree).items()}


def fetch(leaf: Any) -> np.ndarray:
    """The whole array on the host. Where processes hold parts of it, each calls this, and each gets all of it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def hash_array(leaf: Any) -> str:
    """SHA-256 over dtype, shape and bytes."""
    return _sha256([("", leaf)])


def hash_tree(tree: Tree) -> str:
    """SHA-256 over path, dtype, shape and bytes of every array, in path order."""
    return _sha256(sorted(flatten(tree).items(), key=lambda item: item[0]))


def _sha256(leaves: Iterable[tuple[str, Any]]) -> str:
    digest = hashlib.sha256()
    for path, leaf in leaves:
        array = np.ascontiguousarray(fetch(leaf))
        digest.update(f"{path} {array.dtype} {np.shape(leaf)}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # no copy
    return digest.hexdigest()
