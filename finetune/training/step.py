"""The jitted train step: gradients of the trainable parameters only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from finetune.distributed.activations import divided_by_images
from finetune.distributed.sharding import Placement
from finetune.errors import DataError
from finetune.images.spec import ImageSpec
from finetune.models.classifier import Classifier
from finetune.models.frozen_batch_norm import freeze_batch_norm
from finetune.models.lora import adapted
from finetune.optim.parameter_plan import ParameterPlan
from finetune.optim.partitions import LORA, kernel_of
from finetune.recipe import TrainStage
from finetune.training.device_augment import augment_on_device
from finetune.training.frozen_prefix import FrozenPrefix
from finetune.training.losses import correct_predictions, per_example_loss
from finetune.training.state import TrainState
from finetune.trees import flatten, map_paths, merge, paths_of, pick

# image: uint8 [N, H, W, C], or kept: what a frozen prefix keeps of the images; label: int [N], or float32 [N, classes]
Batch = Mapping[str, Any]
# sums over examples: loss, correct, count; over steps: steps, not_finite, grad_norm by partition
Metrics = dict[str, Any]
TrainStep = Callable[[TrainState, Any, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    spec: ImageSpec,
    stage: TrainStage,
    plan: ParameterPlan,
    class_weights: np.ndarray | None = None,
    prefix: FrozenPrefix | None = None,
    placement: Placement | None = None,
) -> TrainStep:
    """``train_step(state, frozen, batch) -> (state, metrics)``, jitted; the state is donated.

    Gradients are taken of ``state.params`` alone; clipping, accumulation and norms see nothing else either. Where the
    backbone is wholly frozen, it computes as in evaluation: no dropout, running statistics used and kept.

    Args:
        stage: loss, accumulation, clipping, averaging, mixing and erasing.
        plan: names of partitions, frozen norms, adapters' scales, strengths of the pull to ``frozen["anchor"]``.
        class_weights: float32 [num_classes], how much each class counts.
        prefix: of :func:`make_forward`, for batches of what it keeps of the images.
        placement: where state, frozen values and batch are; the new state is where the old one was.

    Args of the step:
        frozen: ``{"params": ..., "batch_stats": ..., "anchor": ...}``, all that does not change; only read.
        batch: ``image`` uint8 [N, H, W, C], or ``kept``, the arrays that the prefix gave; ``label`` int [N], or
            float32 [N, num_classes]: a distribution over the classes, or for binary cross-entropy the set of them.
            Images of another dtype are a DataError.
    """
    gradients_of = _make_gradients(classifier, spec, stage, plan, class_weights, prefix, placement)

    def train_step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng, impl=stage.rng_impl), state.step)
        if stage.grad_accum_steps == 1:
            gradients, collections, sums = gradients_of(state.params, state.collections, frozen, batch, key)
        else:
            parts = _split(batch, stage.grad_accum_steps, placement)
            gradients, collections, sums = _accumulate(gradients_of, parts, state, frozen, key)
        weight = jnp.maximum(sums.pop("weight"), jnp.finfo(jnp.float32).tiny)  # a batch may weigh nothing
        gradients = jax.tree.map(lambda g: g / weight, gradients)
        sums["loss"] = sums["loss"] / weight * sums["count"]
        if plan.l2_sp:
            gradients = _pull(gradients, state.params, frozen.get("anchor", {}), plan.l2_sp)
        gradients, norms = _measure_and_clip(gradients, plan.labels, stage.clip_grad_norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = _average(state, params, stage.ema_decay)
        new = TrainState(state.step + 1, params, collections, opt_state, state.rng, average)
        finite = jnp.isfinite(jnp.stack([sums["loss"], *norms.values()])).all()
        return new, {**sums, "steps": jnp.float32(1), "not_finite": jnp.float32(~finite), "grad_norm": norms}

    options: dict[str, Any] = {"donate_argnums": 0, "compiler_options": _compiler_options(stage)}
    if placement is None or placement.is_trivial:
        return jax.jit(train_step, **options)

    def placed_step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        new, metrics = train_step(state, frozen, batch)
        new = jax.lax.with_sharding_constraint(new, placement.shardings(new))
        return new, jax.lax.with_sharding_constraint(metrics, placement.replicated)

    return jax.jit(placed_step, **options)


def _compiler_options(stage: TrainStage) -> dict[str, Any] | None:
    """A CPU's usual order of operations is made for speed: it would recompute blocks early, and keep them."""
    if stage.remat and jax.default_backend() == "cpu":
        return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    return None


def _make_gradients(
    classifier: Classifier,
    spec: ImageSpec,
    stage: TrainStage,
    plan: ParameterPlan,
    class_weights: np.ndarray | None,
    prefix: FrozenPrefix | None,
    placement: Placement | None,
) -> Callable[..., Any]:
    """(params, collections, frozen, batch, key) -> gradients of the sum of losses, collections, sums."""

    def summed_loss(params: Any, collections: Any, frozen: Any, batch: Batch, key: jax.Array) -> Any:
        labels = batch["label"]
        if prefix is not None and "kept" in batch:
            targets = labels
            logits, collections = prefix.resume((params, collections, key), frozen, batch["kept"])
        else:
            images = spec.normalize(_pixels(batch))
            images, targets = augment_on_device(images, labels, classifier.num_classes, key, stage)
            with divided_by_images(placement, images):
                logits, collections = _apply(classifier, plan, params, collections, frozen, images, key)
        losses, weights = per_example_loss(stage.loss, logits, targets, class_weights)
        correct = correct_predictions(logits, labels, sets=stage.loss.name == "binary_cross_entropy")
        sums = {"loss": losses.sum(), "weight": weights.sum(), "correct": correct.sum().astype(jnp.float32)}
        return sums["loss"], (collections, {**sums, "count": jnp.float32(len(labels))})

    def gradients_of(params: Any, *rest: Any) -> tuple[Any, Any, dict[str, jax.Array]]:
        gradients, (collections, sums) = jax.grad(summed_loss, has_aux=True)(params, *rest)
        return gradients, collections, sums

    return gradients_of


def _pixels(batch: Batch) -> Any:
    """The batch's images. Of another dtype they may be from 0 to 1, which no trace sees, and would all be black."""
    images = batch["image"]
    if images.dtype != np.uint8:
        raise DataError(
            f"batch['image'] must be uint8, from 0 to 255; received {images.dtype}; the step normalizes images itself"
        )
    return images


def make_forward(classifier: Classifier, spec: ImageSpec, plan: ParameterPlan) -> Callable[[Any, Any, Any], Any]:
    """The step's forward pass, for :func:`find_frozen_prefix`: ``((params, collections, key), frozen, images)`` to the
    logits and the collections; images are uint8 and not augmented."""

    def forward(varying: Any, frozen: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        params, collections, key = varying
        return _apply(classifier, plan, params, collections, frozen, spec.normalize(images), key)

    return forward


def _apply(
    classifier: Classifier, plan: ParameterPlan, params: Any, collections: Any, frozen: Any, images: Any, key: Any
) -> tuple[jax.Array, Any]:
    """Logits in training, and the collections after it."""
    trainable = {name: tree for name, tree in params.items() if name != LORA}
    names = (frozen.keys() | collections.keys()) - {"params", "anchor"}
    variables = {name: merge(frozen.get(name, {}), collections.get(name, {})) for name in names}
    backbone_trains = bool({"backbone", LORA} & params.keys()) or bool(collections)
    # A module in training may write to a collection of its own that is frozen; what it writes is dropped.
    mutable = sorted(collections.keys() | (names - {"batch_stats"})) if backbone_trains else []
    with ExitStack() as interceptors:
        if plan.frozen_norms:
            interceptors.enter_context(freeze_batch_norm(plan.frozen_norms))
        if LORA in params:
            interceptors.enter_context(adapted(params[LORA], plan.lora_scales))
        logits, updated = classifier.apply(
            {"params": merge(frozen["params"], trainable), **variables},
            images,
            train=True,
            backbone_train=backbone_trains,
            rngs={"dropout": key, "params": jax.random.fold_in(key, 2)},  # Linen takes the second for other names
            mutable=mutable,
        )
    return logits, {name: pick(updated[name], set(paths_of(tree))) for name, tree in collections.items()}


def _split(batch: Batch, parts: int, placement: Placement | None) -> Any:
    """[parts, N / parts, ...] of every array of the batch, each part divided among all devices."""
    split = jax.tree.map(lambda x: x.reshape(parts, len(x) // parts, *x.shape[1:]), dict(batch))
    if placement is None or placement.is_trivial:
        return split
    return jax.lax.with_sharding_constraint(split, placement.microbatches)


def _accumulate(
    gradients_of: Callable[..., Any], split: Any, state: TrainState, frozen: Any, key: jax.Array
) -> tuple[Any, Any, Any]:
    """Sums over the parts of a batch. The loop keeps one part's activations at a time."""

    def add(carry: Any, item: Any) -> Any:
        part, number = item
        gradients, collections, sums = carry
        more, collections, more_sums = gradients_of(
            state.params, collections, frozen, part, jax.random.fold_in(key, number)
        )
        return (optax.tree.add(gradients, more), collections, optax.tree.add(sums, more_sums)), None

    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(gradients_of, state.params, state.collections, frozen, first, key)
    gradients, _, sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    numbers = jnp.arange(len(jax.tree.leaves(split)[0]))
    carry, _ = jax.lax.scan(add, (gradients, state.collections, sums), (split, numbers))
    return carry


def _pull(gradients: Any, params: Any, anchor: Any, strengths: Mapping[str, float]) -> Any:
    """Gradients plus those of strength / 2 * (distance to the anchor)^2; without an anchor, to zero."""
    values, anchors = flatten(params), flatten(anchor)

    def pulled(path: str, gradient: jax.Array) -> jax.Array:
        if path not in strengths:
            return gradient
        return gradient + strengths[path] * (values[path] - anchors.get(path, 0.0))

    return map_paths(pulled, gradients)


def _measure_and_clip(
    gradients: Any, labels: Mapping[str, str], clip_grad_norm: float | None
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradients whose global norm is at most ``clip_grad_norm``, and the norm of each partition before that."""
    squares: dict[str, jax.Array] = {}
    for path, gradient in flatten(gradients).items():
        label = labels[kernel_of(path)]
        squares[label] = squares.get(label, jnp.float32(0)) + jnp.square(gradient.astype(jnp.float32)).sum()
    if clip_grad_norm is not None:
        norm = jnp.sqrt(sum(squares.values(), jnp.float32(0)))
        factor = jnp.minimum(1.0, clip_grad_norm / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
        gradients = jax.tree.map(lambda g: g * factor, gradients)
    return gradients, {label: jnp.sqrt(square) for label, square in squares.items()}


def _average(state: TrainState, params: Any, decay: float | None) -> Any:
    if decay is None:
        return None
    ramp = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return optax.incremental_update(params, state.average, 1.0 - ramp)
