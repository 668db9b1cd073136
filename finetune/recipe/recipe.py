"""A recipe: what to fine-tune, on what, and how. Strict, so that a typo is an error and never a silent default."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from finetune import resources
from finetune.errors import RecipeError, nearest
from finetune.recipe.backbone import BackboneConfig, HeadConfig, ModuleConfig
from finetune.recipe.base import Name, Part, locate
from finetune.recipe.data import DataConfig
from finetune.recipe.source import RecipeSource
from finetune.recipe.stages import LinearProbeStage, Stage, TrainStage

_ABBREVIATIONS = {"lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size"}  # for the error that names the key


class EvaluateConfig(Part):
    batch_size: int = Field(256, ge=1)


class Recipe(Part):
    """One run, from pretrained weights to a classifier."""

    name: Name
    seed: int = Field(0, ge=0, lt=2**32)
    backbone: BackboneConfig
    head: HeadConfig = HeadConfig()
    data: DataConfig
    stages: list[Stage] = Field(min_length=1)
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _stage_names_differ(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stages need different names; used twice: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _what_is_done_to_the_head_has_one(self) -> Recipe:
        if self.head.init == "none" and not isinstance(self.backbone, ModuleConfig):
            raise ValueError("head.init: none is for a module that is whole; a pretrained backbone needs a head")
        for stage in self.stages:
            if self.head.init == "none" and isinstance(stage, LinearProbeStage):
                raise ValueError(f"stage {stage.name!r}: a probe fits the head, and head.init: none puts on none")
        return self

    @model_validator(mode="after")
    def _kept_optimizer_state_comes_from_somewhere(self) -> Recipe:
        for i, stage in enumerate(self.stages):
            keeps = isinstance(stage, TrainStage) and stage.carry_optimizer_state
            if keeps and (i == 0 or not isinstance(self.stages[i - 1], TrainStage)):
                raise ValueError(f"stage {stage.name!r}: carry_optimizer_state needs a training stage before it")
        return self


def load_recipe(path_or_name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path_or_name: a YAML file, or the name of a bundled recipe (``finetune ls`` lists them).
        overrides: ``dotted.key=value`` sets (list items by number), ``~dotted.key`` deletes.

    Raises:
        RecipeError: naming file and line (or the override), what was received, and what is valid.
    """
    source = RecipeSource.read(find_recipe(path_or_name))
    for override in overrides:
        source.override(override)
    source.document.setdefault("name", source.path.stem)
    try:
        return Recipe.model_validate(source.plain())
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(e, source) for e in error.errors())) from None


def find_recipe(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    names = resources.recipes()
    if str(path_or_name) in names:
        return names[str(path_or_name)]
    if path.is_dir():
        raise RecipeError(f"{path}: a folder, not a recipe file")
    raise RecipeError(
        f"{path_or_name}: no such file, and no bundled recipe of that name"
        f"{nearest(str(path_or_name), names)}; bundled: {', '.join(names)}"
    )


def _explain(error: Any, source: RecipeSource) -> str:
    """One line for one of pydantic's findings: where, what, received, valid."""
    at, valid = locate(Recipe, error["loc"])
    dotted = ".".join(map(str, at)) or "recipe"
    where = source.where(at)
    if error["type"] == "extra_forbidden":
        options = sorted(valid)
        meant = _ABBREVIATIONS.get(str(at[-1]), str(at[-1]))
        return f"{where}: unknown key {dotted!r}{nearest(meant, options)}; valid here: {', '.join(options)}"
    if error["type"] == "union_tag_invalid":
        tag, tags = error["ctx"]["tag"], error["ctx"]["expected_tags"].replace("'", "").split(", ")
        kind = error["ctx"]["discriminator"].strip("'_()")
        return f"{where}: {dotted}: unknown {kind} {tag!r}{nearest(tag, tags)}; choose {', '.join(tags)}"
    if error["type"] == "missing":
        return f"{where}: {dotted!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    received = error["input"]
    if isinstance(received, str | int | float | bool) or received is None:
        return f"{where}: {dotted}: {message}; received {received!r}"
    return f"{where}: {dotted}: {message}"
