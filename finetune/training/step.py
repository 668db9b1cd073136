"""The jitted train step: gradients of what learns and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from finetune.images.spec import ImageSpec
from finetune.models.classifier import Classifier
from finetune.models.frozen_batch_norm import freeze_batch_norm
from finetune.models.lora import adapted
from finetune.optim.partitions import LORA, kernel_of, map_paths, merge, pick
from finetune.recipe import Loss
from finetune.recipe.augment import RandomErasing
from finetune.recipe.optimization import CrossEntropy
from finetune.training.device_augment import erase, mix
from finetune.training.losses import correct_predictions, per_example_loss
from finetune.training.state import TrainState

Metrics = dict[str, Any]  # sums over examples: loss, correct, count; over steps: steps, grad_norm by partition
TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class StepOptions:
    """What a train step does besides forward, backward and update.

    Attributes:
        loss: and ``class_weights``, float32 [num_classes], by which images count.
        grad_accum_steps: parts that the batch is computed in, one after the other.
        clip_grad_norm: greatest global norm of all gradients.
        average: decay of the moving average of what learns.
        mixup, cutmix: alphas, 0 for none.
        random_erasing: boxes of images are blanked, before any mixing.
        labels: path -> partition, for the gradient norms.
        pull: path -> strength of the pull to ``frozen["anchor"]``, or to zero where it has no such leaf.
        held: modules, by path, whose running statistics are used and do not change.
        scales: path of a dense module -> factor of its adapter.
        remat: the backbone computes its blocks again; the compiler is told to put memory first.
    """

    loss: Loss = CrossEntropy()
    class_weights: np.ndarray | None = None
    grad_accum_steps: int = 1
    clip_grad_norm: float | None = None
    average: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    random_erasing: RandomErasing | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    pull: Mapping[str, float] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    scales: Mapping[str, float] = field(default_factory=dict)
    remat: bool = False


def make_train_step(
    classifier: Classifier,
    optimizer: optax.GradientTransformation,
    spec: ImageSpec,
    options: StepOptions | None = None,
) -> TrainStep:
    """``train_step(state, frozen, batch) -> (state, metrics)``, jitted; the state is donated.

    Gradients are taken of ``state.params`` alone; clipping, accumulation and norms see nothing else either. Where
    nothing in the backbone learns, it computes as in evaluation: no dropout, running statistics used and held.

    Args of the step:
        frozen: ``{"params": ..., "batch_stats": ...}``, all that does not change; only read.
        batch: ``image`` uint8 [N, H, W, C]; ``label`` int [N], or float32 [N, num_classes]: a distribution over the
            classes, or for the sigmoid loss the set of them.
    """
    options = options or StepOptions()
    part = _make_part(classifier, spec, options)

    def train_step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        if options.grad_accum_steps == 1:
            gradients, collections, sums = part(state.params, state.collections, frozen, batch, key)
        else:
            gradients, collections, sums = _accumulate(part, options.grad_accum_steps, state, frozen, batch, key)
        weight = jnp.maximum(sums.pop("weight"), jnp.finfo(jnp.float32).tiny)  # a batch may weigh nothing
        gradients = jax.tree.map(lambda g: g / weight, gradients)
        sums["loss"] = sums["loss"] / weight * sums["count"]
        if options.pull:
            gradients = _pull(gradients, state.params, frozen.get("anchor", {}), options.pull)
        gradients, norms = _measure_and_clip(gradients, options)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, collections, opt_state, state.rng, _average(state, params, options))
        return new, {**sums, "steps": jnp.float32(1), "grad_norm": norms}

    return jax.jit(train_step, donate_argnums=0, compiler_options=_compiler_options(options))


def _compiler_options(options: StepOptions) -> dict[str, Any] | None:
    """A CPU's usual order of operations is made for speed: it would compute blocks again early, and keep them."""
    if options.remat and jax.default_backend() == "cpu":
        return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    return None


def _make_part(classifier: Classifier, spec: ImageSpec, options: StepOptions) -> Callable[..., Any]:
    """(params, collections, frozen, batch, key) -> gradients of the sum of losses, collections, sums."""

    def summed_loss(params: Any, collections: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        labels = batch["label"]
        images, targets = augment_on_device(
            spec.normalize(batch["image"]), labels, classifier.num_classes, key, options
        )
        logits, collections = _apply(classifier, options, params, collections, frozen, images, key)
        losses, weights = per_example_loss(options.loss, logits, targets, options.class_weights)
        correct = (
            correct_predictions(logits, labels, sets=options.loss.name == "binary_cross_entropy")
            .sum()
            .astype(jnp.float32)
        )
        sums = {"loss": losses.sum(), "weight": weights.sum(), "correct": correct}
        return sums["loss"], (collections, {**sums, "count": jnp.float32(len(labels))})

    def part(params: Any, *rest: Any) -> tuple[Any, Any, dict[str, jax.Array]]:
        gradients, (collections, sums) = jax.grad(summed_loss, has_aux=True)(params, *rest)
        return gradients, collections, sums

    return part


def augment_on_device(
    images: jax.Array, labels: jax.Array, num_classes: int, key: jax.Array, options: StepOptions
) -> tuple[jax.Array, jax.Array]:
    """Normalized images and their targets after what is done to them on the device: erasing, then mixing."""
    targets = labels
    if options.random_erasing is not None:
        images = erase(
            images, jax.random.fold_in(key, 1), options.random_erasing.probability, options.random_erasing.area
        )
    if options.mixup or options.cutmix:
        targets = jax.nn.one_hot(labels, num_classes) if labels.ndim == 1 else labels
        images, targets = mix(images, targets, jax.random.fold_in(key, 0), options.mixup, options.cutmix)
    return images, targets


def _apply(
    classifier: Classifier, options: StepOptions, params: Any, collections: Any, frozen: Any, images: Any, key: Any
) -> tuple[jax.Array, Any]:
    """Logits in training, and the collections after it."""
    own = {name: tree for name, tree in params.items() if name != LORA}
    names = (frozen.keys() | collections.keys()) - {"params", "anchor"}
    variables = {name: merge(frozen.get(name, {}), collections.get(name, {})) for name in names}
    learns = bool({"backbone", LORA} & params.keys()) or bool(collections)
    # A module in training may write to a collection of its own that is frozen; that is let go of.
    mutable = sorted(collections.keys() | (names - {"batch_stats"})) if learns else []
    with ExitStack() as inside:
        if options.held:
            inside.enter_context(freeze_batch_norm(options.held))
        if LORA in params:
            inside.enter_context(adapted(params[LORA], options.scales))
        logits, updated = classifier.apply(
            {"params": merge(frozen["params"], own), **variables},
            images,
            train=True,
            backbone_train=learns,
            rngs={"dropout": key, "params": jax.random.fold_in(key, 2)},  # Linen takes the second for other names
            mutable=mutable,
        )
    kept = {
        name: pick(updated[name], {"/".join(key) for key in flatten_dict(tree)}) for name, tree in collections.items()
    }
    return logits, kept


def _accumulate(
    part: Callable[..., Any], count: int, state: TrainState, frozen: Any, batch: Any, key: jax.Array
) -> tuple[Any, Any, Any]:
    """Sums over the parts of a batch. The loop keeps one part's activations at a time."""
    parts = jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), batch)

    def add(carry: Any, item: Any) -> Any:
        gradients, collections, sums = carry
        more, collections, found = part(state.params, collections, frozen, item[0], jax.random.fold_in(key, item[1]))
        return (_add(gradients, more), collections, _add(sums, found)), None

    small = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(part, state.params, state.collections, frozen, small, key)
    gradients, _, sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    carry, _ = jax.lax.scan(add, (gradients, state.collections, sums), (parts, jnp.arange(count)))
    return carry


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: x + y, a, b)


def _pull(gradients: Any, params: Any, anchor: Any, strengths: Mapping[str, float]) -> Any:
    """Gradients with those of strength / 2 * (distance to the anchor)^2 added."""
    values, anchors = flatten_dict(params, sep="/"), flatten_dict(anchor, sep="/")

    def pulled(path: str, gradient: jax.Array) -> jax.Array:
        if path not in strengths:
            return gradient
        return gradient + strengths[path] * (values[path] - anchors.get(path, 0.0))

    return map_paths(pulled, gradients)


def _measure_and_clip(gradients: Any, options: StepOptions) -> tuple[Any, dict[str, jax.Array]]:
    """Gradients whose global norm is at most ``clip_grad_norm``, and the norm of each partition before that."""
    squares: dict[str, jax.Array] = {}
    for path, gradient in flatten_dict(gradients, sep="/").items():
        label = options.labels.get(kernel_of(path), "all")
        squares[label] = squares.get(label, jnp.float32(0)) + jnp.square(gradient.astype(jnp.float32)).sum()
    if options.clip_grad_norm is not None:
        norm = jnp.sqrt(sum(squares.values(), jnp.float32(0)))
        factor = jnp.minimum(1.0, options.clip_grad_norm / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
        gradients = jax.tree.map(lambda g: g * factor, gradients)
    return gradients, {label: jnp.sqrt(square) for label, square in squares.items()}


def _average(state: TrainState, params: Any, options: StepOptions) -> Any:
    if options.average is None:
        return None
    decay = jnp.minimum(options.average, (1.0 + state.step) / (10.0 + state.step))
    return jax.tree.map(lambda mean, value: decay * mean + (1 - decay) * value, state.average, params)
