"""Rules over parameter paths: who learns and who is frozen. The first rule that matches a path decides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from pydantic import ValidationError

from finetune.errors import PartitionError, nearest
from finetune.recipe import Partition

Params = Mapping[str, Any]
Rules = Sequence[Partition] | Sequence[Mapping[str, Any]] | Sequence[tuple[str, str]]


def as_partitions(rules: Sequence[Partition] | Sequence[Mapping[str, Any]]) -> list[Partition]:
    """Rules as recipe parts; plain dicts are checked like a recipe's."""
    try:
        return [rule if isinstance(rule, Partition) else Partition.model_validate(dict(rule)) for rule in rules]
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'rule'}: {e['msg']}" for e in error.errors())
        raise PartitionError(f"partitions: not a valid rule: {found}") from None


def partition_names(partitions: Sequence[Partition]) -> list[str]:
    """A name for each partition: ``frozen``, or its pattern."""
    return ["frozen" if partition.frozen else partition.match for partition in partitions]


def label_params(params: Params, rules: Rules) -> dict[str, Any]:
    """The tree of partition names, one for each leaf of ``params``.

    Args:
        params: nested dicts; a leaf's path is its keys joined by ``/``.
        rules: partitions (their names are ``frozen`` or their patterns), or (pattern, name) pairs. Patterns are
            regular expressions for the whole path.

    Raises:
        PartitionError: leaves that no rule covers, by name, or a pattern that is not a regular expression.
    """
    compiled = [(_compile(pattern), name) for pattern, name in _pairs(rules)]
    labels: dict[tuple[str, ...], str] = {}
    uncovered = []
    for key in flatten_dict(params):
        path = "/".join(key)
        name = next((name for pattern, name in compiled if pattern.fullmatch(path)), None)
        if name is None:
            uncovered.append(path)
        else:
            labels[key] = name
    if uncovered:
        patterns = [pattern.pattern for pattern, _ in compiled]
        raise PartitionError(
            f"partitions: {len(uncovered)} parameters match no rule, such as {', '.join(uncovered[:3])}"
            f"{nearest(uncovered[0], patterns)}; rules: {', '.join(patterns)}; "
            'add one last rule such as {match: ".*", frozen: true}'
        )
    return unflatten_dict(labels)


def check_rules_match(params: Params, rules: Rules) -> None:
    """Finds rules that are there for nothing.

    Raises:
        PartitionError: a rule that decides about no parameter.
    """
    keys = ["/".join(key) for key in flatten_dict(params)]
    left = set(keys)
    for pattern, _ in _pairs(rules):
        taken = {path for path in left if re.fullmatch(pattern, path)}
        if not taken:
            taken_before = any(re.fullmatch(pattern, path) for path in keys)
            why = (
                "earlier rules take all that it matches" if taken_before else f"no parameter path matches{_hint(keys)}"
            )
            raise PartitionError(f"partitions: the rule {pattern!r} decides about nothing: {why}")
        left -= taken


def split_frozen(params: Params, rules: Rules) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen): two trees with disjoint leaves that :func:`merge` puts together again."""
    labels = flatten_dict(label_params(params, rules))
    flat = flatten_dict(params)
    trainable = {key: leaf for key, leaf in flat.items() if labels[key] != "frozen"}
    frozen = {key: leaf for key, leaf in flat.items() if labels[key] == "frozen"}
    return unflatten_dict(trainable), unflatten_dict(frozen)


def merge(*trees: Params) -> dict[str, Any]:
    """One tree of the leaves of all; a later tree's leaf replaces an earlier one's."""
    flat: dict[tuple[str, ...], Any] = {}
    for tree in trees:
        flat |= flatten_dict(tree)
    return unflatten_dict(flat)


def _pairs(rules: Rules) -> list[tuple[str, str]]:
    if rules and isinstance(rules[0], tuple):
        return list(rules)  # type: ignore[arg-type]
    partitions = as_partitions(rules)  # type: ignore[arg-type]
    return list(zip([p.match for p in partitions], partition_names(partitions), strict=True))


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise PartitionError(f"partitions: {pattern!r} is not a regular expression: {error}") from None


def _hint(keys: list[str]) -> str:
    return f"; paths look like {', '.join(keys[:: max(1, len(keys) // 3)][:3])}"
