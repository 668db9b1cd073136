"""Whether a recipe can be right: everything about it that needs no data, and of the model its shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from finetune.models.build import describe_backbone
from finetune.models.classifier import Classifier, init_shapes
from finetune.models.depth import depth_order_of
from finetune.optim.optimizer import learning_rates
from finetune.optim.parameter_plan import ParameterPlan
from finetune.optim.schedules import nominal_length
from finetune.recipe import PretrainedConfig, Recipe

_CLASSES = 2  # where the recipe does not say how many: no rule depends on it


def validate_recipe(recipe: Recipe, *, allow_local_code: bool = False) -> dict[str, Any]:
    """Checks a recipe without its data. Its keys and values have been checked when it was loaded.

    Args:
        allow_local_code: import the module of your own that the recipe names, if it does.

    Returns:
        Plain JSON values: ``name``; ``stages``, for each training stage its ``name`` and ``partitions`` (as
        :meth:`ParameterPlan.summarize` says them; None where the model is not here); and ``unchecked``, why that is.

    Raises:
        FinetuneError: a checkpoint on this disk that cannot be read, partitions that do not fit its parameters, or
            schedules that do not fit the stages.
    """
    classifier, shapes, unchecked = _shapes(recipe, allow_local_code)
    stages: list[dict[str, Any]] = []
    for stage in recipe.train_stages.values():
        learning_rates(stage.partitions, nominal_length(stage))
        partitions = None
        if classifier is not None:
            plan = ParameterPlan.make(shapes, stage.partitions, depth_order_of(classifier.backbone))
            partitions = plan.summarize(shapes["params"])
        stages.append({"name": stage.name, "partitions": partitions})
    return {"name": recipe.name, "stages": stages, "unchecked": unchecked}


def _shapes(recipe: Recipe, allow_local_code: bool) -> tuple[Classifier | None, Any, str | None]:
    """The classifier and the shapes of its variables; or why they are not known."""
    config, head = recipe.backbone, recipe.head
    if isinstance(config, PretrainedConfig) and not _is_here(config.source):
        return None, None, f"backbone.source: {config.source} is not on this disk: partitions are not checked"
    module, spec = describe_backbone(config, allow_local_code=allow_local_code)
    classifier = Classifier(module, head.num_classes or _CLASSES, head.dropout, None, headless=head.init == "none")
    _, shapes = init_shapes(classifier, jax.ShapeDtypeStruct((1, *spec.shape), jnp.float32))
    return classifier, shapes, None


def _is_here(source: str) -> bool:
    return source.startswith("builtin:") or Path(source).expanduser().exists()
