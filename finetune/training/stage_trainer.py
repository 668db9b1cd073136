"""A stage of a recipe, ready for a training loop: its step, its state, and the variables of a state."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from finetune.distributed.sharding import Placement, on_one_device
from finetune.errors import ModelError
from finetune.images.spec import ImageSpec
from finetune.models.classifier import Classifier
from finetune.models.depth import depth_order_of
from finetune.models.lora import init_adapters, merge_adapters
from finetune.optim.optimizer import learning_rates, plan_optimizer
from finetune.optim.parameter_plan import ParameterPlan
from finetune.optim.partitions import LORA
from finetune.optim.schedules import StageLength
from finetune.recipe import TrainStage
from finetune.training.device_augment import augment_on_device
from finetune.training.frozen_prefix import FrozenPrefix, find_frozen_prefix
from finetune.training.losses import class_weights
from finetune.training.state import TrainState
from finetune.training.step import Batch, TrainStep, make_forward, make_train_step
from finetune.trees import Variables, merge, paths_of, pick


class StageTrainer:
    """A stage for a loop of one's own: ``state, metrics = trainer.step(state, trainer.frozen, batch)``.

    Attributes:
        stage, length: what was asked for, and how long that is.
        plan: which parameters are trainable, and which statistics are frozen.
        optimizer: of the trainable parameters.
        schedules: learning rate at each step, by partition.
        step: jitted; donates its state.
        num_classes: width of the logits.
        placement: where the arrays are; ``placement.put_batch`` divides a batch among the devices.
    """

    def __init__(
        self,
        stage: TrainStage,
        classifier: Classifier,
        variables: Variables,
        image_spec: ImageSpec,
        length: StageLength,
        *,
        seed: int = 0,
        class_weights: np.ndarray | None = None,
        pretrained: Any = None,
        plan: ParameterPlan | None = None,
        placement: Placement | None = None,
    ) -> None:
        """
        Args:
            variables: the classifier's, before the stage.
            length: of the stage and of an epoch.
            seed: of dropout, stochastic depth, mixing and adapters.
            class_weights: float32 [num_classes], for the loss; by default those that ``stage.loss`` lists. Where it
                says ``balanced``, pass :func:`finetune.training.losses.balanced_weights` of the training labels.
            pretrained: the backbone's parameters, which ``l2_sp`` pulls to; by default those in ``variables``.
            plan: of these variables and the stage's partitions, where it was made before.
            placement: of state, frozen values and batches on a mesh of devices; by default on one.

        Raises:
            PartitionError: rules that do not fit the parameters.
            RecipeError: class weights of another number of classes, or balanced ones without ``class_weights``.
            ModelError: a backbone that cannot compute as asked.
            MeshError: a batch that cannot be divided among the devices.
        """
        self.stage, self.length = stage, length
        self.plan = plan or ParameterPlan.make(variables, stage.partitions, depth_order_of(classifier.backbone))
        self.optimizer = plan_optimizer(self.plan, length)
        self.schedules = learning_rates(stage.partitions, length)
        self._classifier = _computing(classifier, stage, self.plan)
        self._seed, self._spec, self.num_classes = seed, image_spec, classifier.num_classes
        self._class_weights = _listed_weights(stage, self.num_classes) if class_weights is None else class_weights
        self.placement = placement or on_one_device()
        self.placement.check_batch(f"stage {stage.name!r}: batch_size", stage.batch_size, stage.grad_accum_steps)
        self.step: TrainStep = self._make_step()
        self._divide(variables)
        source = variables["params"].get("backbone", {}) if pretrained is None else pretrained
        self._anchor = pick({"backbone": source}, self.plan.l2_sp)

    def _key(self) -> jax.Array:
        return jax.random.key(self._seed, impl=self.stage.rng_impl)

    def _make_step(self, prefix: FrozenPrefix | None = None) -> TrainStep:
        return make_train_step(
            *(self._classifier, self.optimizer, self._spec, self.stage, self.plan, self._class_weights, prefix),
            placement=self.placement,
        )

    def find_frozen_prefix(self, batch_size: int) -> FrozenPrefix | None:
        """The part of the forward pass that depends on images and frozen values alone, if there is any.

        Args:
            batch_size: with which it will be computed.

        Returns:
            None where every image is changed on the device in each step, or where nothing before the first trainable
            parameter is worth keeping.
        """
        stage = self.stage
        if stage.mixup or stage.cutmix or stage.augment.random_erasing is not None:
            return None
        forward, state = make_forward(self._classifier, self._spec, self.plan), jax.eval_shape(self.init_state)
        varying = (state.params, state.collections, jax.eval_shape(self._key))
        part = stage.batch_size // stage.grad_accum_steps
        sizes = (part, batch_size if batch_size != part else batch_size + 1)
        image = jax.ShapeDtypeStruct(self._spec.shape, jnp.uint8)
        return find_frozen_prefix(forward, varying, self.frozen, image, sizes)

    def train_from(self, prefix: FrozenPrefix) -> None:
        """From now on ``step`` also takes batches with ``kept``, what the prefix gives, instead of images."""
        self.step = self._make_step(prefix)

    def scale_rates(self, factor: optax.Schedule) -> None:
        """From now on, learning rates are those of the stage times ``factor(step)``."""
        self.optimizer = optax.chain(self.optimizer, optax.scale_by_schedule(factor))
        self.step = self._make_step()
        self.__dict__.pop("_create", None)

    def _divide(self, variables: Variables) -> None:
        """The variables by what the step does with them: it reads, or it changes."""
        params = variables["params"]
        self._frozen_params = pick(params, set(paths_of(params)) - self.plan.trainable | self.plan.adapted)
        self._params = pick(params, self.plan.trainable - self.plan.adapted)
        others = {name: tree for name, tree in variables.items() if name != "params"}
        frozen = {path for path in paths_of(others) if self.plan.freezes(path)}
        self._frozen_collections = pick(others, frozen)
        self._collections = pick(others, set(paths_of(others)) - frozen)

    @cached_property
    def frozen(self) -> dict[str, Any]:
        """Everything that the step only reads, in the dtype that the stage holds it in."""
        return self._put(self._make_frozen())

    def _make_frozen(self) -> dict[str, Any]:
        anchor = {"anchor": self._anchor} if self.plan.l2_sp else {}
        return {**self._frozen_collections, "params": _cast(self._frozen_params, self.stage.frozen_dtype), **anchor}

    def shapes(self) -> tuple[TrainState, dict[str, Any]]:
        """:meth:`init_state` and ``frozen`` as shapes with their places, to compile for; nothing is made."""
        state, frozen = jax.eval_shape(self.init_state), jax.eval_shape(self._make_frozen)
        return self.placement.shapes(state), self.placement.shapes(frozen)

    def init_state(self) -> TrainState:
        """The state before the first step."""
        params, key = self._params, self._key()
        if self.plan.adapted:
            params = {**params, LORA: self._init_adapters(key)}
        return self._create(*self._put((params, self._collections)), key)

    def _put(self, tree: Any) -> Any:
        """On the mesh, where there is one."""
        return tree if self.placement.is_trivial else self.placement.put(tree)

    @cached_property
    def _create(self) -> Any:
        """Makes a state, in one program: a part for each device where there are several."""

        def create(params: Any, collections: Any, key: jax.Array) -> TrainState:
            averaged = self.stage.ema_decay is not None
            state = TrainState.create(params, collections, self.optimizer, key, averaged=averaged)
            if self.placement.is_trivial:
                return state
            return jax.lax.with_sharding_constraint(state, self.placement.shardings(state))

        return jax.jit(create)

    def variables(self, state: TrainState) -> dict[str, Any]:
        """The classifier's variables at a state, as they are measured and saved: averaged, with adapters merged."""
        trained = dict(state.params if state.average is None else state.average)
        adapters = trained.pop(LORA, None)
        params = merge(self._frozen_params, trained)
        if adapters is not None:
            params = merge_adapters(params, adapters, self.plan.lora_scales)
        collections = {
            name: merge(self._frozen_collections.get(name, {}), state.collections.get(name, {}))
            for name in self._frozen_collections.keys() | state.collections.keys()
        }
        return {**collections, "params": params}

    def is_finite(self, state: TrainState) -> bool:
        """Whether all that has been trained is finite. Waits for the device."""
        return bool(_all_finite((state.params, state.average, state.collections)))

    def preview(self, batch: Batch) -> jax.Array:
        """The batch's images as the first step sees them, uint8 [N, H, W, C]."""

        @jax.jit
        def seen(images: jax.Array, labels: jax.Array) -> jax.Array:
            key = jax.random.fold_in(self._key(), 0)
            images, _ = augment_on_device(self._spec.normalize(images), labels, self.num_classes, key, self.stage)
            return self._spec.denormalize(images)

        return seen(batch["image"], batch["label"])

    def resumable(self, state: TrainState) -> dict[str, Any]:
        """What it takes, beside :meth:`variables`, to go on from a state."""
        tree = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        if state.average is not None or self.plan.adapted:  # otherwise the variables are the state's own
            tree |= {"params": state.params, "kernels": pick(self._frozen_params, self.plan.adapted)}
        if state.average is not None:
            tree["average"] = state.average
        return tree

    def resume(self, state: TrainState, tree: dict[str, Any]) -> TrainState:
        """A fresh state brought to where :meth:`resumable` gave ``tree``."""
        tree = dict(tree)
        if kernels := tree.pop("kernels", None):
            self._frozen_params = merge(self._frozen_params, kernels)
            self.__dict__.pop("frozen", None)  # made anew with these kernels
        return replace(state, **tree)

    def _init_adapters(self, key: jax.Array) -> dict[str, Any]:
        trees = []
        for rule in self.stage.partitions:
            if rule.lora is not None:
                paths = {path for path in self.plan.adapted if self.plan.rules[path] is rule}
                kernels = pick(self._frozen_params, paths)
                trees.append(init_adapters(kernels, rank=rule.lora.rank, dora=rule.lora.dora, rng=key))
        return merge(*trees)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(leaf).all() for leaf in floats]).all()


def _cast(params: Any, dtype: str) -> Any:
    """Floating-point leaves in another dtype; integers stay what they are."""
    if dtype == "float32":
        return params
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)


def _listed_weights(stage: TrainStage, num_classes: int) -> np.ndarray | None:
    return class_weights(stage.loss, None, num_classes)


def _computing(classifier: Classifier, stage: TrainStage, plan: ParameterPlan) -> Classifier:
    """The classifier with the backbone's compute dtype, rematerialization and scans as the stage asks for."""
    changes: dict[str, Any] = {}
    if stage.compute_dtype != "float32":
        changes["dtype"] = jnp.dtype(stage.compute_dtype)
    if stage.remat:
        changes["remat"] = True
    if stage.scan_layers:
        order = depth_order_of(classifier.backbone)
        changes["scan_layers"] = () if order is None else plan.runs_of_blocks(order)
    for name in changes:
        if not hasattr(classifier.backbone, name):
            option = "compute_dtype" if name == "dtype" else name
            raise ModelError(f"{option}: {type(classifier.backbone).__name__} has no attribute {name!r} to set")
    return classifier.clone(backbone=classifier.backbone.clone(**changes)) if changes else classifier
