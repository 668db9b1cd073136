"""Heads that are fitted to features: what each kind of stage makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetune.distributed.sharding import Placement
from finetune.errors import RecipeError
from finetune.models.classifier import HeadModule
from finetune.models.heads import KnnConfig, TipAdapterConfig
from finetune.models.zero_shot import TextClassifier
from finetune.recipe import HeadStage
from finetune.recipe.heads import (
    ClapStage,
    KnnStage,
    LinearProbeStage,
    LpPlusPlusStage,
    PrototypeStage,
    TipAdapterStage,
)
from finetune.training.heads.clap import fit_clap
from finetune.training.heads.knn import fit_knn
from finetune.training.heads.linear_probe import fit_linear_probe
from finetune.training.heads.lp_plus_plus import fit_lp_plus_plus
from finetune.training.heads.prototype import fit_prototype
from finetune.training.heads.tip_adapter import fit_tip_adapter
from finetune.training.losses import balanced_weights


@dataclass(frozen=True)
class FittingData:
    """Features and labels.

    Attributes:
        features: float32 [n, d]; labels: int [n], or float32 [n, num_classes] of 0 and 1.
        validation: the same of the validation images; None without.
        placement: on the devices that share the images.
    """

    features: np.ndarray
    labels: np.ndarray
    validation: tuple[np.ndarray, np.ndarray] | None
    num_classes: int
    seed: int = 0
    placement: Placement | None = None


@dataclass(frozen=True)
class FittedHead:
    """Variables of the head, ``{"params": {"head": ...}, ...}``; facts for the log; and lines for a person."""

    variables: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


def head_config(stage: HeadStage, images: int, text_width: int | None) -> HeadModule | None:
    """Of the head that a stage makes; None for a linear one.

    Args:
        images: number of training images.
        text_width: of the space shared with text, where there is one.
    """
    if isinstance(stage, KnnStage):
        return KnnConfig(images, stage.k, stage.temperature)
    if isinstance(stage, TipAdapterStage):
        assert text_width is not None
        return TipAdapterConfig(images, text_width)
    return None


def fit_head(stage: HeadStage, data: FittingData, text: Callable[[], TextClassifier]) -> FittedHead:
    """The head of a stage.

    Args:
        text: embeds the class names.
    """
    x, y, classes = data.features, data.labels, data.num_classes
    match stage:
        case LinearProbeStage():
            return _linear_probe(stage, data)
        case KnnStage():
            return FittedHead(_of_head(fit_knn(x, y)))
        case PrototypeStage():
            return FittedHead(_linear(*fit_prototype(x, y, classes, distance=stage.distance)))
        case TipAdapterStage():
            return _tip_adapter(stage, data, text())
        case LpPlusPlusStage():
            return FittedHead(_linear(*fit_lp_plus_plus(x, y, classes, text(), steps=stage.steps)))
        case ClapStage():
            return FittedHead(_linear(*fit_clap(x, y, classes, text())))
    raise AssertionError(f"no head of type {stage.type}")


def _tip_adapter(stage: TipAdapterStage, data: FittingData, text: TextClassifier) -> FittedHead:
    variables, report = fit_tip_adapter(
        data.features,
        data.labels,
        data.num_classes,
        text,
        alpha=stage.alpha,
        beta=stage.beta,
        validation=data.validation,
        epochs=stage.epochs,
        learning_rate=stage.learning_rate,
        seed=data.seed,
    )
    chosen = "" if report.accuracy is None else ", the best on the validation images"
    line = f"alpha {report.alpha:.3g}, beta {report.beta:.3g}{chosen}"
    return FittedHead(_of_head(variables), {"alpha": report.alpha, "beta": report.beta}, (line,))


def _linear_probe(stage: LinearProbeStage, data: FittingData) -> FittedHead:
    validation = None if stage.select_on == "folds" else data.validation
    probe = fit_linear_probe(
        data.features,
        data.labels,
        data.num_classes,
        stage.l2,
        validation=validation,
        seed=data.seed,
        class_weights=probe_weights(stage, data.labels, data.num_classes),
        standardize=stage.standardize,
        placement=data.placement,
    )
    chosen = "" if stage.l2 is not None else f", l2 {probe.l2:g} of the least held-out loss"
    state = f"converged after {probe.iterations} iterations" if probe.converged else "did not converge"
    facts = {"l2": probe.l2, "iterations": probe.iterations, "converged": probe.converged, "held_out": probe.held_out}
    return FittedHead(_linear(probe.kernel, probe.bias), facts, (f"{state}{chosen}",))


def probe_weights(stage: LinearProbeStage, labels: np.ndarray, num_classes: int) -> np.ndarray | None:
    """How much each class counts, float32 [num_classes]; None where all count alike.

    Raises:
        RecipeError: the number of weights is not the number of classes.
    """
    if stage.class_weights is None:
        return None
    if stage.class_weights == "balanced":
        return balanced_weights(labels, num_classes)
    if len(stage.class_weights) != num_classes:
        count = len(stage.class_weights)
        raise RecipeError(f"stage {stage.name!r}: class_weights: {count} weights for {num_classes} classes")
    return np.asarray(stage.class_weights, np.float32)


def _linear(kernel: Any, bias: Any) -> dict[str, Any]:
    return _of_head({"params": {"kernel": kernel, "bias": bias}})


def _of_head(variables: dict[str, Any]) -> dict[str, Any]:
    """A head's own variables as those of a classifier."""
    return {collection: {"head": tree} for collection, tree in variables.items()}
