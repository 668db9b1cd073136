"""Which parameters a stage trains, how fast, and which statistics it freezes: decided once, before anything trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

from finetune.errors import PartitionError
from finetune.models.depth import DepthOrder
from finetune.optim.partitions import assign_rules, check_every_rule_takes
from finetune.optim.selectors import classifier_depths, is_bias_or_scale, is_embedding
from finetune.page.facts import ShownByFacts
from finetune.recipe import Partition
from finetune.trees import Variables, flatten, module_of, paths_of


@dataclass(frozen=True, repr=False)
class ParameterPlan(ShownByFacts):
    """What a stage does with each leaf of a classifier's variables. Paths are joined by ``/``.

    Attributes:
        partitions: the stage's rules, in order.
        rules: path of a parameter -> the partition that takes it.
        frozen_norms: modules whose running statistics are frozen.
        frozen_state: ``collection/path`` of frozen leaves outside of params and batch_stats.
        depths: path of a parameter -> its depth (see :class:`~finetune.models.depth.DepthOrder`); empty where no
            partition has a layer decay.
    """

    partitions: tuple[Partition, ...]
    rules: Mapping[str, Partition]
    frozen_norms: frozenset[str] = frozenset()
    frozen_state: frozenset[str] = frozenset()
    depths: Mapping[str, int] = field(default_factory=dict)

    def _facts(self) -> dict[str, Any]:
        labels, taken = [rule.label for rule in self.partitions], Counter(rule.label for rule in self.rules.values())
        return {"partitions": tuple(f"{label}: {taken[label]} leaves" for label in dict.fromkeys(labels))}

    @classmethod
    def make(
        cls, variables: Variables, partitions: Sequence[Partition], depth_order: DepthOrder | None = None
    ) -> ParameterPlan:
        """Matches every rule against every leaf.

        Args:
            variables: ``{"params": ..., ...}``, arrays or shapes.
            partitions: the first that matches a parameter takes it.
            depth_order: of the backbone, which ``blocks[...]`` and ``layer_decay`` need.

        Raises:
            PartitionError: leaves that match no rule, rules or options without an effect, or blocks whose order is not
                known.
        """
        matches, paths = [partition.match for partition in partitions], paths_of(variables["params"])
        assigned = assign_rules(paths, matches, depth_order)
        check_every_rule_takes(assigned, matches, depth_order)
        rules = {path: partitions[number] for path, number in assigned.items()}
        norms = _norm_partitions(variables, rules, partitions, depth_order)
        state = _state_partitions(variables, partitions, depth_order)
        decays = any(partition.layer_decay is not None for partition in partitions)
        plan = cls(
            tuple(partitions),
            rules,
            frozenset(module for module, rule in norms.items() if rule.freezes_statistics),
            frozenset(path for path, rule in state.items() if rule.freezes_statistics),
            classifier_depths(paths, depth_order) if decays else {},
        )
        plan._check_effects(flatten(variables["params"]), [*norms.values(), *state.values()])
        return plan

    @cached_property
    def labels(self) -> dict[str, str]:
        """path of a parameter -> name of its partition."""
        return {path: rule.label for path, rule in self.rules.items()}

    def runs_of_blocks(self, order: DepthOrder) -> tuple[int, ...]:
        """Numbers of the backbone's blocks that follow each other and of which the same parameters are frozen, and the
        same adapted in the same way."""
        blocks: dict[Any, set[Any]] = {}
        for path, rule in self.rules.items():
            inside = path.removeprefix("backbone/")
            if inside != path and (layer := order.layer(inside)):
                lora = rule.lora and (rule.lora.rank, rule.lora.dora, rule.lora.scale)
                blocks.setdefault(order.key(inside), set()).add((inside.removeprefix(layer), rule.frozen, lora))
        return tuple(len(list(run)) for _, run in groupby(blocks[key] for key in sorted(blocks)))

    @cached_property
    def trainable(self) -> frozenset[str]:
        """Parameters that the stage changes, directly or through adapters."""
        return frozenset(path for path, rule in self.rules.items() if not rule.frozen)

    @cached_property
    def adapted(self) -> frozenset[str]:
        """Kernels that are trained through adapters."""
        return frozenset(path for path, rule in self.rules.items() if rule.lora is not None)

    @cached_property
    def lora_scales(self) -> dict[str, float]:
        """path of a module with an adapter -> factor of the adapter's output."""
        return {module_of(path): rule.lora.scale for path, rule in self.rules.items() if rule.lora is not None}

    @cached_property
    def l2_sp(self) -> dict[str, float]:
        """path of a parameter -> strength of its pull to the pretrained value."""
        return {path: rule.l2_sp for path, rule in self.rules.items() if rule.l2_sp}

    def freezes(self, path: str) -> bool:
        """Whether a leaf outside of params, ``collection/path``, stays as it is."""
        collection, _, inner = path.partition("/")
        return path in self.frozen_state or (collection == "batch_stats" and module_of(inner) in self.frozen_norms)

    def changes(self, variables: Variables) -> set[str]:
        """``collection/path`` of everything that the stage changes."""
        others = {path for path in paths_of(variables) if not path.startswith("params/")}
        return {f"params/{path}" for path in self.trainable} | {path for path in others if not self.freezes(path)}

    def rate_factor(self, path: str) -> float:
        """What a parameter's learning rate is multiplied by: its partition's layer decay to the power of the blocks
        above it."""
        decay = self.rules[path].layer_decay
        return 1.0 if decay is None else decay ** (self._top - self.depths[path])

    def decays(self, path: str, leaf: Any) -> bool:
        """Whether weight decay acts on a leaf: on kernels, not on norms, biases, scales, tokens and positions."""
        rule = self.rules[path]
        is_kernel = leaf.ndim > 1 and not is_embedding(path) and not is_bias_or_scale(path)
        return rule.weight_decay > 0 and (is_kernel or rule.weight_decay_on == "all")

    def summarize(self, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One record for each partition: name, how many parameters it took, and what becomes of them."""
        sizes: dict[str, int] = {}
        for path, leaf in flatten(params).items():
            sizes[self.labels[path]] = sizes.get(self.labels[path], 0) + leaf.size
        rules = {rule.label: rule for rule in self.partitions}
        return [
            {
                "name": label,
                "parameters": size,
                "frozen": rules[label].frozen,
                "optimizer": None if rules[label].frozen else rules[label].optimizer.name,
                "learning_rate": rules[label].learning_rate,
                "lora": None if (lora := rules[label].lora) is None else lora.rank,
            }
            for label, size in sizes.items()
        ]

    def describe(self, params: Mapping[str, Any]) -> list[str]:
        """The same as one line for each partition."""
        return [
            f"{record['name']}: {record['parameters']:,} parameters, {_treatment(record)}"
            for record in self.summarize(params)
        ]

    def _check_effects(self, params: Mapping[str, Any], with_statistics: Sequence[Partition]) -> None:
        """Refuses options that have no effect on the parameters that their partition took."""
        for rule in self.partitions:
            taken = [path for path in params if self.rules[path] is rule]
            where = f"partitions: the rule {rule.match!r}"
            if rule.weight_decay and rule.lora is None and not any(self.decays(path, params[path]) for path in taken):
                raise PartitionError(
                    f"{where}: weight_decay {rule.weight_decay:g} has no effect: it took no kernel; leave it out, "
                    "or set weight_decay_on: all"
                )
            if rule.layer_decay is not None and all(self.rate_factor(path) == 1 for path in taken):
                raise PartitionError(
                    f"{where}: layer_decay {rule.layer_decay:g} has no effect: all that it took is above the last "
                    "block; leave it out"
                )
            if rule.batch_norm is not None and not any(rule is other for other in with_statistics):
                raise PartitionError(
                    f"{where}: batch_norm: {rule.batch_norm} has no effect: it took no layer with running statistics; "
                    "leave it out"
                )

    @cached_property
    def _top(self) -> int:
        return max(self.depths.values())


def _treatment(record: Mapping[str, Any]) -> str:
    if record["frozen"]:
        return "frozen"
    adapters = "" if record["lora"] is None else f"adapters of rank {record['lora']}, "
    return f"{adapters}{record['optimizer']}, peak learning rate {record['learning_rate']:g}"


def _norm_partitions(
    variables: Variables,
    rules: Mapping[str, Partition],
    partitions: Sequence[Partition],
    depth_order: DepthOrder | None,
) -> dict[str, Partition]:
    """module with running statistics -> the partition that they follow: that of its scale, or its bias; those of a norm
    with neither follow their own path."""
    statistics = {module_of(path): path for path in paths_of(variables.get("batch_stats", {}))}
    affine = {module_of(path): path for path in sorted(rules, key=lambda path: path.endswith("/scale"))}
    alone = [path for module, path in statistics.items() if module not in affine]
    matches = [partition.match for partition in partitions]
    assigned = assign_rules([*rules, *alone], matches, depth_order) if alone else {}
    followed = {module: rules[affine[module]] for module in statistics if module in affine}
    return followed | {module_of(path): partitions[assigned[path]] for path in alone}


def _state_partitions(
    variables: Variables, partitions: Sequence[Partition], depth_order: DepthOrder | None
) -> dict[str, Partition]:
    """``collection/path`` of a module's other state -> the partition that matches it; what no rule matches changes as
    the module changes it."""
    names = variables.keys() - {"params", "batch_stats"}
    inner = {path: f"{name}/{path}" for name in names for path in paths_of(variables[name])}
    if not inner:
        return {}
    paths = dict.fromkeys([*paths_of(variables["params"]), *inner])  # of all leaves, so that blocks are counted alike
    assigned = assign_rules(list(paths), [*(partition.match for partition in partitions), ".*"], depth_order)
    return {inner[path]: partitions[assigned[path]] for path in inner if assigned[path] < len(partitions)}
