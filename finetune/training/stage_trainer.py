"""From a stage's words to what its loop needs: who learns, the step, the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from finetune.errors import ModelError
from finetune.images.spec import ImageSpec
from finetune.models.classifier import Classifier
from finetune.models.lora import init_adapters, merge_adapters
from finetune.optim.optimizer import build_optimizer, learning_rates
from finetune.optim.partitions import LORA, assign_rules, check_rules_match, merge, paths_of, pick
from finetune.optim.schedules import StageLength
from finetune.recipe import FROZEN, Partition, TrainStage
from finetune.training.state import TrainState
from finetune.training.step import StepOptions, TrainStep, augment_on_device, make_train_step


@dataclass(frozen=True)
class ParameterPlan:
    """Which leaves of a classifier's variables do what in a stage; paths are joined by ``/``.

    Attributes:
        rules: path of a parameter -> the partition that decides about it.
        held: modules whose running statistics are held.
        still: ``collection/path`` of leaves outside of params and batch_stats that a rule freezes.
    """

    rules: Mapping[str, Partition]
    held: frozenset[str]
    still: frozenset[str] = frozenset()

    @classmethod
    def of(cls, variables: Any, partitions: list[Partition]) -> ParameterPlan:
        """Raises PartitionError for leaves without a rule, and for rules without leaves."""
        check_rules_match(variables["params"], partitions)
        paths = paths_of(variables["params"])
        statistics = {_module(path): path for path in paths_of(variables.get("batch_stats", {}))}
        affine = {_module(path): path for path in sorted(paths, key=lambda path: path.endswith("/scale"))}
        # a norm follows its scale and bias; one that has neither goes by its statistics' own path
        alone = [path for module, path in statistics.items() if module not in affine]
        numbers = assign_rules([*paths, *alone], partitions)
        rules = {path: partitions[number] for path, number in numbers.items()}
        held = {m for m, path in statistics.items() if rules[affine.get(m, path)].freezes_statistics}
        return cls({path: rules[path] for path in paths}, frozenset(held), _still(variables, partitions))

    @cached_property
    def labels(self) -> dict[str, str]:
        return {path: rule.label for path, rule in self.rules.items()}

    @cached_property
    def learning(self) -> set[str]:
        """Parameters that the stage changes, by themselves or through adapters."""
        return {path for path, label in self.labels.items() if label != FROZEN}

    @cached_property
    def adapted(self) -> set[str]:
        return {path for path, rule in self.rules.items() if rule.lora is not None}

    def holds(self, path: str) -> bool:
        """Whether a leaf outside of params, ``collection/path``, stays as it is."""
        collection, _, inner = path.partition("/")
        return path in self.still or (collection == "batch_stats" and _module(inner) in self.held)


class StageTrainer:
    """A stage ready to run: ``step(state, frozen, batch)``.

    Attributes:
        stage, clock: what was asked for, and how long that is.
        step: jitted, donates its state.
        frozen: what the step only reads.
        division: who learns.
        rates: learning rate at each step, by partition.
    """

    def __init__(
        self,
        stage: TrainStage,
        classifier: Classifier,
        variables: Any,
        spec: ImageSpec,
        clock: StageLength,
        *,
        seed: int = 0,
        class_weights: np.ndarray | None = None,
        pretrained: Any = None,
    ) -> None:
        """
        Args:
            variables: the classifier's, before the stage.
            clock: lengths of the stage and of an epoch.
            seed: of dropout, stochastic depth, mixing and adapters.
            class_weights: float32 [num_classes], for the loss.
            pretrained: the backbone's parameters, for the pull towards them; by default those in ``variables``.

        Raises:
            PartitionError: rules that do not fit the parameters; ModelError: a backbone that cannot compute as asked.
        """
        params = variables["params"]
        self.stage, self.clock, self.division = stage, clock, ParameterPlan.of(variables, stage.partitions)
        self.schedules = learning_rates(stage.partitions, clock)
        self._seed, self._spec, self._classes = seed, spec, classifier.num_classes
        self._scales = {_module(p): rule.lora.scale for p, rule in self.division.rules.items() if rule.lora}
        self.optimizer = build_optimizer(
            stage.partitions,
            params,
            total_steps=clock.total_steps,
            steps_per_epoch=clock.steps_per_epoch,
            batch_size=clock.batch_size,
        )
        still = self.division.rules.keys() - self.division.learning | self.division.adapted
        self._still = pick(params, still)
        self._own = pick(params, self.division.learning - self.division.adapted)
        others = {name: tree for name, tree in variables.items() if name != "params"}
        held = {path for path in paths_of(others) if self.division.holds(path)}
        self._held, self._collections = pick(others, held), pick(others, set(paths_of(others)) - held)
        pull = {path: rule.l2_sp for path, rule in self.division.rules.items() if rule.l2_sp}
        anchor = pick({"backbone": pretrained if pretrained is not None else params["backbone"]}, pull)
        self.frozen = {**self._held, "params": self._for_step(self._still), **({"anchor": anchor} if pull else {})}
        self.options = StepOptions(
            loss=stage.loss,
            class_weights=class_weights,
            grad_accum_steps=stage.grad_accum_steps,
            clip_grad_norm=stage.clip_grad_norm,
            average=stage.ema_decay,
            mixup=stage.mixup,
            cutmix=stage.cutmix,
            random_erasing=stage.augment.random_erasing,
            labels=self.division.labels,
            pull=pull,
            held=self.division.held,
            scales=self._scales,
            remat=stage.remat,
        )
        self.step: TrainStep = make_train_step(_computing(classifier, stage), self.optimizer, spec, self.options)

    def init_state(self) -> TrainState:
        """A fresh state."""
        params, key = self._own, jax.random.key(self._seed)
        if self._scales:
            params = {**params, LORA: self._fresh_adapters(key)}
        return TrainState.create(
            params, self._collections, self.optimizer, key, averaged=self.stage.ema_decay is not None
        )

    def variables(self, state: TrainState) -> dict[str, Any]:
        """The classifier's variables at a state, as they are measured and kept: averaged, with adapters merged."""
        learned = dict(state.params if state.average is None else state.average)
        adapters = learned.pop(LORA, None)
        params = merge(self._still, learned)
        if adapters is not None:
            params = merge_adapters(params, adapters, self._scales)
        collections = {
            name: merge(self._held.get(name, {}), state.collections.get(name, {}))
            for name in self._held.keys() | state.collections.keys()
        }
        return {**collections, "params": params}

    def preview(self, batch: Any) -> jax.Array:
        """The batch's images as the first step sees them, uint8 [N, H, W, C]."""
        key = jax.random.fold_in(jax.random.key(self._seed), 0)
        images, _ = augment_on_device(
            self._spec.normalize(batch["image"]),
            batch["label"],
            self._classes,
            key,
            self.options,
        )
        return self._spec.denormalize(images)

    def resumable(self, state: TrainState) -> dict[str, Any]:
        """What it takes, beside :meth:`variables`, to go on from a state."""
        tree = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        if state.average is not None or self._scales:  # otherwise the variables are the state's own
            tree |= {"params": state.params, "kernels": pick(self._still, self.division.adapted)}
        if state.average is not None:
            tree["average"] = state.average
        return tree

    def resume(self, state: TrainState, tree: dict[str, Any]) -> TrainState:
        """A fresh state brought to where :meth:`resumable` gave ``tree``."""
        tree = dict(tree)
        if kernels := tree.pop("kernels", None):
            self._still = merge(self._still, kernels)
            self.frozen = {**self.frozen, "params": self._for_step(self._still)}
        return replace(state, **tree)

    def _fresh_adapters(self, key: jax.Array) -> dict[str, Any]:
        trees = []
        for rule in self.stage.partitions:
            if rule.lora is not None:
                paths = {path for path in self.division.adapted if self.division.rules[path] is rule}
                kernels = pick(self._still, paths)
                trees.append(init_adapters(kernels, rank=rule.lora.rank, dora=rule.lora.dora, rng=key))
        return merge(*trees)

    def _for_step(self, params: Any) -> Any:
        """Frozen parameters in the dtype that the stage holds them in; integers stay what they are."""
        if self.stage.frozen_dtype == "float32":
            return params
        narrow = jnp.dtype(self.stage.frozen_dtype)
        return jax.tree.map(lambda x: jnp.asarray(x, narrow) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)


def _computing(classifier: Classifier, stage: TrainStage) -> Classifier:
    """The classifier with the backbone's compute dtype and rematerialization as the stage asks for."""
    changes: dict[str, Any] = {}
    if stage.compute_dtype != "float32":
        changes["dtype"] = jnp.dtype(stage.compute_dtype)
    if stage.remat:
        changes["remat"] = True
    for name in changes:
        if not hasattr(classifier.backbone, name):
            asked = "precision" if name == "dtype" else name
            raise ModelError(f"{asked}: {type(classifier.backbone).__name__} has no attribute {name!r} to set")
    return classifier.clone(backbone=classifier.backbone.clone(**changes)) if changes else classifier


def _still(variables: Any, partitions: list[Partition]) -> frozenset[str]:
    """What a rule freezes of a module's own collections; what no rule speaks of changes as the module changes it."""
    names = variables.keys() - {"params", "batch_stats"}
    inner = {path: f"{name}/{path}" for name in names for path in paths_of(variables[name])}
    if not inner:
        return frozenset()
    numbers = assign_rules(list(inner), [*((rule.match, rule.label) for rule in partitions), (".*", "")])
    held = {
        path for path, number in numbers.items() if number < len(partitions) and partitions[number].freezes_statistics
    }
    return frozenset(inner[path] for path in held)


def _module(path: str) -> str:
    return path.rsplit("/", 1)[0]
