"""Rules over parameters: who learns and who is frozen. The first rule that matches a path decides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from pydantic import ValidationError

from finetune.errors import PartitionError, nearest
from finetune.optim.selectors import SELECTORS, select
from finetune.recipe import FROZEN, Partition

LORA = "lora"  # where adapters stand in the tree of what learns, beside backbone and head
Params = Mapping[str, Any]
Rules = Sequence[Partition] | Sequence[Mapping[str, Any]] | Sequence[tuple[str, str]]


def as_partitions(rules: Sequence[Partition] | Sequence[Mapping[str, Any]]) -> list[Partition]:
    """Rules as recipe parts; plain dicts are checked like a recipe's."""
    try:
        return [rule if isinstance(rule, Partition) else Partition.model_validate(dict(rule)) for rule in rules]
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'rule'}: {e['msg']}" for e in error.errors())
        raise PartitionError(f"partitions: not a valid rule: {found}") from None


def label_params(params: Params, rules: Rules) -> dict[str, Any]:
    """The tree of partition names, one for each leaf of ``params``.

    Args:
        params: nested dicts, such as a classifier's; a leaf's path is its keys joined by ``/``.
        rules: partitions, or (match, name) pairs; ``match`` is a regular expression for the whole path or a selector
            (see :class:`Partition`). The first that matches decides.

    Raises:
        PartitionError: leaves that no rule covers, by name, with the nearest rule.
    """
    taken = assign_rules(paths_of(params), rules)
    labels = [name for _, name in _pairs(rules)]
    return unflatten_dict({tuple(path.split("/")): labels[number] for path, number in taken.items()})


def assign_rules(paths: Collection[str], rules: Rules) -> dict[str, int]:
    """path -> number of the rule that decides about it.

    Raises:
        PartitionError: paths that no rule covers.
    """
    pairs = _pairs(rules)
    taken: dict[str, int] = {}
    for number, (match, _) in enumerate(pairs):
        for path in select(match, paths):
            taken.setdefault(path, number)
    uncovered = [path for path in paths if path not in taken]
    if uncovered:
        matches = [match for match, _ in pairs]
        raise PartitionError(
            f"partitions: {len(uncovered)} parameters match no rule, such as {', '.join(uncovered[:3])}"
            f"{nearest(uncovered[0], matches)}; rules: {', '.join(matches)}; "
            'add one last rule such as {match: ".*", frozen: true}'
        )
    return {path: taken[path] for path in paths}


def check_rules_match(params: Params, rules: Rules) -> None:
    """Finds rules that are there for nothing.

    Raises:
        PartitionError: a rule that decides about no parameter.
    """
    paths = paths_of(params)
    left = set(paths)
    for match, _ in _pairs(rules):
        found = select(match, paths)
        if not found & left:
            why = "earlier rules take all that it matches" if found else f"no parameter matches{_hint(match, paths)}"
            raise PartitionError(f"partitions: the rule {match!r} decides about nothing: {why}")
        left -= found


def split_frozen(params: Params, rules: Rules) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen): two trees with disjoint leaves that :func:`merge` puts together again."""
    labels = flatten_dict(label_params(params, rules))
    flat = flatten_dict(params)
    trainable = {key: leaf for key, leaf in flat.items() if labels[key] != FROZEN}
    frozen = {key: leaf for key, leaf in flat.items() if labels[key] == FROZEN}
    return unflatten_dict(trainable), unflatten_dict(frozen)


def merge(*trees: Params) -> dict[str, Any]:
    """One tree of the leaves of all; a later tree's leaf replaces an earlier one's."""
    flat: dict[tuple[str, ...], Any] = {}
    for tree in trees:
        flat |= flatten_dict(tree)
    return unflatten_dict(flat)


def pick(params: Params, paths: Collection[str]) -> dict[str, Any]:
    """The part of a tree that has these paths."""
    return unflatten_dict({key: leaf for key, leaf in flatten_dict(params).items() if "/".join(key) in paths})


def paths_of(params: Params) -> list[str]:
    return ["/".join(key) for key in flatten_dict(params)]


def kernel_of(path: str) -> str:
    """The parameter whose partition a leaf belongs to: itself, or the kernel that an adapter is for."""
    if not path.startswith(f"{LORA}/"):
        return path
    return f"{path.removeprefix(f'{LORA}/').rsplit('/', 1)[0]}/kernel"


def map_paths(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """``function(path, leaf)`` of every leaf of nested dicts; what optax masks out stays masked."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: function("/".join(key.key for key in keys), leaf), tree)


def _pairs(rules: Rules) -> list[tuple[str, str]]:
    if rules and isinstance(rules[0], tuple):
        return list(rules)  # type: ignore[arg-type]
    return [(p.match, p.label) for p in as_partitions(rules)]  # type: ignore[arg-type]


def _hint(match: str, paths: list[str]) -> str:
    examples = ", ".join(paths[:: max(1, len(paths) // 3)][:3])
    return f"{nearest(match, SELECTORS)}; paths look like {examples}; selectors are {', '.join(SELECTORS)}"
