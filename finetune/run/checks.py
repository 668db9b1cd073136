"""What a recipe asks for that its data, or its backbone, cannot give: told before anything trains."""

from __future__ import annotations

from finetune.data.splits import Splits
from finetune.errors import DataError, RecipeError
from finetune.models.backbone import Backbone
from finetune.recipe import HeadStage, Recipe
from finetune.recipe.heads import LinearProbeStage, TextStage


def check_text(recipe: Recipe, backbone: Backbone) -> None:
    """Raises RecipeError for a head from class names on a backbone without a text tower."""
    for i, stage in enumerate(recipe.stages):
        if isinstance(stage, TextStage) and backbone.text is None:
            raise RecipeError(
                f"stages.{i}: {stage.type} starts from class names, which needs a text tower, and "
                f"{recipe.backbone.origin} has none; use a CLIP or SigLIP, or type: linear_probe"
            )


def check_class_count(recipe: Recipe, splits: Splits) -> None:
    """Raises DataError where the recipe's number of classes is not that of the data."""
    expected, names = recipe.head.num_classes, splits.class_names
    if expected is not None and expected != len(names):
        raise DataError(
            f"head.num_classes: {expected}, but {recipe.data.source} has {len(names)} classes: "
            f"{', '.join(names[:10])}{' ...' if len(names) > 10 else ''}; correct it or leave it out"
        )


def check_label_kind(recipe: Recipe, splits: Splits) -> None:
    """Raises RecipeError for what images with several labels each cannot be used for."""
    if not splits.multi_label:
        return
    hint = "images here have several labels each"
    if recipe.head.init == "zero_shot":
        raise RecipeError(f"head.init: {hint}: a zero-shot head chooses one; use zeros")
    for i, stage in enumerate(recipe.stages):
        if isinstance(stage, HeadStage):
            if not isinstance(stage, LinearProbeStage):
                raise RecipeError(f"stages.{i}: {hint}: {stage.type} chooses one; use type: linear_probe")
            continue
        if stage.loss.name != "binary_cross_entropy":
            raise RecipeError(f"stages.{i}.loss: {hint}: {stage.loss.name} chooses one; use loss: binary_cross_entropy")


def check_validation(recipe: Recipe, splits: Splits) -> None:
    """Raises RecipeError for what needs validation images where there are none, or images of another kind."""
    wanted = {f"stages.{i}.early_stopping": stage.early_stopping for i, stage in recipe.train_stages.items()}
    metrics = {"evaluate.metric": recipe.evaluate.metric}
    for key, stopping in wanted.items():
        if stopping is not None:
            metrics[f"{key}.metric"] = stopping.metric
            if splits.validation is None:
                raise RecipeError(f"{key}: there are no validation images to improve on: set data.validation")
    for key, metric in metrics.items():
        if metric == "mean_average_precision" and not splits.multi_label:
            raise RecipeError(f"{key}: {metric} is for images with several labels each; choose accuracy or loss")
    if recipe.evaluate.metric is not None and splits.validation is None:
        raise RecipeError("evaluate.metric: has no effect without validation images: set data.validation")
