"""The jitted steps: train, evaluate, extract features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from finetune.data.image_spec import ImageSpec
from finetune.models.classifier import Classifier
from finetune.optim.partitions import merge
from finetune.training.state import TrainState

Metrics = dict[str, jax.Array]  # sums over examples: loss, correct, count
TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Any], tuple[Metrics, jax.Array]]


def make_train_step(classifier: Classifier, optimizer: optax.GradientTransformation, spec: ImageSpec) -> TrainStep:
    """``train_step(state, frozen, batch) -> (state, metrics)``, jitted; the state is donated.

    Gradients are taken of ``state.params`` alone. Where no parameter of the backbone learns, the backbone computes
    as in evaluation: no dropout, running statistics used and held. The loss is the mean softmax cross-entropy.

    Args of the step:
        frozen: the parameters that do not learn; only read.
        batch: ``image`` uint8 [N, H, W, 3] and ``label`` int [N].
    """

    def train_step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            logits, updated = classifier.apply(
                {"params": merge(frozen, params), **state.collections},
                spec.normalize(batch["image"]),
                train=True,
                backbone_train="backbone" in params,
                rngs={"dropout": key},
                mutable=list(state.collections),
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.mean(), (logits, updated)

        (loss, (logits, updated)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        count = jnp.float32(len(batch["label"]))
        correct = (logits.argmax(-1) == batch["label"]).sum().astype(jnp.float32)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            collections={**state.collections, **updated},
            opt_state=opt_state,
            rng=state.rng,
        )
        return new_state, {"loss": loss * count, "correct": correct, "count": count}

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(classifier: Classifier, spec: ImageSpec) -> EvalStep:
    """``eval_step(variables, batch) -> (metrics, logits)``, jitted.

    The batch's ``weight`` is 0 for filled-up rows, which count for nothing; logits are float32 [N, num_classes].
    """

    def eval_step(variables: Any, batch: Any) -> tuple[Metrics, jax.Array]:
        logits: Any = classifier.apply(variables, spec.normalize(batch["image"]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = logits.argmax(-1) == batch["label"]
        weight = batch["weight"]
        return {"loss": (losses * weight).sum(), "correct": (correct * weight).sum(), "count": weight.sum()}, logits

    return jax.jit(eval_step)


def make_feature_step(classifier: Classifier, spec: ImageSpec) -> Callable[[Any, Any], jax.Array]:
    """``feature_step(variables, images)``: uint8 [N, H, W, 3] to the float32 features the head reads, jitted."""

    def feature_step(variables: Any, images: jax.Array) -> jax.Array:
        features: Any = classifier.apply(variables, spec.normalize(images), method="features")
        return features.astype(jnp.float32)

    return jax.jit(feature_step)
