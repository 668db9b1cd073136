"""Rules over parameters: which are trainable and which are frozen. The first rule that matches a path takes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pydantic import ValidationError

from finetune.errors import PartitionError, nearest
from finetune.models.depth import DepthOrder
from finetune.optim.selectors import SELECTORS, needs_depth, select
from finetune.recipe import Partition
from finetune.trees import Tree, paths_of, unflatten

LORA = "lora"  # where adapters are in the tree of trainable parameters, beside backbone and head
Rules = Sequence[Partition] | Sequence[Mapping[str, object]] | Sequence[tuple[str, str]]


def label_params(params: Tree, rules: Rules, *, depth_order: DepthOrder | None = None) -> dict[str, object]:
    """The tree of partition names, one for each leaf of ``params``.

    Args:
        params: nested dicts, such as a classifier's; a leaf's path is its keys joined by ``/``.
        rules: partitions, or (match, name) pairs; ``match`` is a regular expression for the whole path or a selector
            (see :class:`Partition`). The first that matches takes the leaf.
        depth_order: of the backbone's blocks; by default that of the family whose backbones have these paths.

    Raises:
        PartitionError: leaves that match no rule, by name, with the nearest rule.
    """
    pairs, paths = _pairs(rules), paths_of(params)
    if any(needs_depth(match) for match, _ in pairs):
        depth_order = depth_order or tree_depth_order(paths)
    assigned = assign_rules(paths, [match for match, _ in pairs], depth_order)
    return unflatten({path: pairs[number][1] for path, number in assigned.items()})


def as_partitions(rules: Sequence[Partition] | Sequence[Mapping[str, object]]) -> list[Partition]:
    """Rules as recipe parts; plain dicts are checked like a recipe's."""
    try:
        return [rule if isinstance(rule, Partition) else Partition.model_validate(dict(rule)) for rule in rules]
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'rule'}: {e['msg']}" for e in error.errors())
        raise PartitionError(f"partitions: not a valid rule: {problems}") from None


def assign_rules(
    paths: Collection[str], matches: Sequence[str], depth_order: DepthOrder | None = None
) -> dict[str, int]:
    """path -> number of the rule that takes it.

    Raises:
        PartitionError: paths that no rule matches.
    """
    assigned: dict[str, int] = {}
    for number, match in enumerate(matches):
        for path in select(match, paths, depth_order):
            assigned.setdefault(path, number)
    uncovered = [path for path in paths if path not in assigned]
    if uncovered:
        raise PartitionError(
            f"partitions: {len(uncovered)} parameters match no rule, such as {', '.join(uncovered[:3])}"
            f"{nearest(uncovered[0], matches)}; rules: {', '.join(matches)}; "
            'add one last rule such as {match: ".*", frozen: true}'
        )
    return {path: assigned[path] for path in paths}


def check_every_rule_takes(assigned: Mapping[str, int], matches: Sequence[str], depth_order: DepthOrder | None) -> None:
    """Refuses rules without an effect.

    Raises:
        PartitionError: a rule that takes no parameter: none matches, or earlier rules take them all.
    """
    used, paths = set(assigned.values()), list(assigned)
    for number, match in enumerate(matches):
        if number not in used:
            matched = select(match, paths, depth_order)
            why = "earlier rules take all that it matches" if matched else f"no parameter matches{_hint(match, paths)}"
            raise PartitionError(f"partitions: the rule {match!r} takes no parameter: {why}")


def kernel_of(path: str) -> str:
    """The parameter whose partition a leaf belongs to: itself, or the kernel that an adapter is for."""
    if not path.startswith(f"{LORA}/"):
        return path
    return f"{path.removeprefix(f'{LORA}/').rsplit('/', 1)[0]}/kernel"


def tree_depth_order(paths: Collection[str]) -> DepthOrder | None:
    """The depth order of a bare tree's backbone, where one family alone has such paths."""
    from finetune.models.registry import depth_order_of_tree  # imports every family

    return depth_order_of_tree([path.removeprefix("backbone/") for path in paths if path.startswith("backbone/")])


def _pairs(rules: Rules) -> list[tuple[str, str]]:
    if rules and isinstance(rules[0], tuple):
        return list(rules)  # type: ignore[arg-type]
    return [(p.match, p.label) for p in as_partitions(rules)]  # type: ignore[arg-type]


def _hint(match: str, paths: list[str]) -> str:
    examples = ", ".join(paths[:: max(1, len(paths) // 3)][:3])
    return f"{nearest(match, SELECTORS)}; paths look like {examples}; selectors are {', '.join(SELECTORS)}"
