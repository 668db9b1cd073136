"""Jitted steps: logits with summed metrics, and features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from finetune.distributed.activations import divided_by_images
from finetune.distributed.sharding import Placement, on_one_device
from finetune.images.spec import ImageSpec
from finetune.models.classifier import Classifier
from finetune.training.frozen_prefix import FrozenPrefix
from finetune.training.losses import correct_predictions

Metrics = dict[str, jax.Array]  # sums over examples: loss, correct, count
EvalStep = Callable[[Any, Any], tuple[Metrics, jax.Array]]


def make_eval_step(classifier: Classifier, spec: ImageSpec, placement: Placement | None = None) -> EvalStep:
    """``eval_step(variables, batch) -> (metrics, logits)``, jitted.

    The batch holds ``image`` uint8 [N, H, W, C], ``label`` (int [N], or 0 and 1 of shape [N, num_classes]) and
    ``weight`` float32 [N], which is 0 for the rows that pad the last batch. Logits are float32 [N, num_classes]. The
    loss is cross-entropy, or for labels of shape [N, num_classes] its binary form, the mean over the classes.

    Args:
        placement: of variables and batches, where there are several devices; all have all of the results.
    """

    def eval_step(variables: Any, batch: Any) -> tuple[Metrics, jax.Array]:
        images = spec.normalize(batch["image"])
        with divided_by_images(placement, images):
            logits: Any = classifier.apply(variables, images)
        return _measure(logits, batch), logits

    return (placement or on_one_device()).jit(eval_step)


def make_kept_eval_step(prefix: FrozenPrefix, placement: Placement | None = None) -> EvalStep:
    """The same from what a prefix of the logits keeps: ``eval_step((varying, frozen), batch)``, whose batch holds
    ``kept`` instead of ``image``."""

    def eval_step(variables: Any, batch: Any) -> tuple[Metrics, jax.Array]:
        varying, frozen = variables
        logits = prefix.resume(varying, frozen, batch["kept"])
        return _measure(logits, batch), logits

    return (placement or on_one_device()).jit(eval_step)


def _measure(logits: jax.Array, batch: Any) -> Metrics:
    labels, weight = batch["label"], batch["weight"]
    if labels.ndim == 1:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        losses = optax.sigmoid_binary_cross_entropy(logits, labels).mean(-1)
    correct = correct_predictions(logits, labels, sets=True)
    return {"loss": (losses * weight).sum(), "correct": (correct * weight).sum(), "count": weight.sum()}


def make_feature_step(classifier: Classifier, spec: ImageSpec) -> Callable[[Any, Any], jax.Array]:
    """``feature_step(variables, images)``, jitted: uint8 [N, H, W, C] to the head's float32 input."""

    def feature_step(variables: Any, images: jax.Array) -> jax.Array:
        features: Any = classifier.apply(variables, spec.normalize(images), method="features")
        return features.astype(jnp.float32)

    return jax.jit(feature_step)
