"""A recipe: what to fine-tune, on what, and how. Strict: a typo is an error, never a silent default."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml.comments import CommentedMap

from finetune import resources
from finetune.errors import RecipeError, nearest, shown
from finetune.page.facts import ShownByFacts, table_rows, without_secrets
from finetune.recipe.backbone import BackboneConfig, HeadConfig, PretrainedConfig
from finetune.recipe.base import KeyPath, Name, Part, locate, mistakes, takes_text
from finetune.recipe.data import DataConfig
from finetune.recipe.heads import HeadStage, TextStage
from finetune.recipe.mesh import MeshChoice
from finetune.recipe.optimization import has_state
from finetune.recipe.saving import SaveConfig
from finetune.recipe.source import RecipeSource, dump_recipe
from finetune.recipe.stages import Metric, Stage, TrainStage
from finetune.recipe.trackers import TrackerConfig

_PATHS: tuple[KeyPath, ...] = (("data", "source"), ("backbone", "source"), ("backbone", "weights"))
_MISTAKES = 20  # that a message names
_ABBREVIATIONS = {"lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size"}  # for the error that names the key


CalibrationMethod = Literal["temperature", "vector", "none"]
Interpolation = Literal["reestimate", "average", "off"]
UnknownScore = Literal["energy", "knn", "mahalanobis"]


class EvaluateConfig(Part):
    """How models are evaluated.

    Attributes:
        batch_size: images at a time.
        metric: chooses among the steps of a stage, and among the stages, on the validation images; by default
            ``mean_average_precision`` for images with several labels, else ``accuracy``.
        calibration: of the saved model's probabilities, on the validation images where there are some: by one
            ``temperature``; by a ``vector``, a scale and a bias for each class, which needs many images; or ``none``.
        interpolation: of the weights before and after fine-tuning, as the last step of a run whose validation images
            can choose the share of each. Statistics of batch normalization are ``reestimate``d on training images, or
            ``average``d like the weights; ``off`` leaves the step out.
        unknown: the score by which the saved model tells images of no class: the ``energy`` of its logits, the distance
            to the nearest training images (``knn``), or to the nearest class (``mahalanobis``), both of features.
        also: further sets of test images, such as sketches of the same classes: name -> source. Every step is measured
            on all images of each; they choose nothing.
    """

    batch_size: int = Field(256, ge=1)
    metric: Metric | None = None
    calibration: CalibrationMethod = "temperature"
    interpolation: Interpolation = "reestimate"
    unknown: UnknownScore = "energy"
    also: dict[Name, str] = Field(default_factory=dict)


class Recipe(ShownByFacts, Part):
    """One run, from pretrained weights to a classifier.

    Attributes:
        name: the run's, and by default its folder's; where left out, the file's name without its ending.
        seed: of everything random but the test split, which is the same for every seed.
        backbone: a pretrained model (``source``), or a Linen module of your own (``module``).
        head: the layer on the backbone's features.
        data: labelled images.
        stages: what is trained, in order; may be empty where the head classifies from the start.
        evaluate: how models are evaluated.
        save: how often what it takes to go on is saved.
        mesh: how several devices share the work; by default all of them divide each batch. ``auto`` takes the fewest
            parts of the parameters that fit the memory.
        trackers: who follows the run's numbers beside ``metrics.jsonl``, such as ``[tensorboard]``.
    """

    name: Name
    seed: int = Field(0, ge=0, lt=2**32)
    backbone: BackboneConfig
    head: HeadConfig = HeadConfig()
    data: DataConfig
    stages: list[Stage]
    evaluate: EvaluateConfig = EvaluateConfig()
    save: SaveConfig = SaveConfig()
    mesh: MeshChoice | None = None
    trackers: list[TrackerConfig] = Field(default_factory=list)

    @property
    def train_stages(self) -> dict[int, TrainStage]:
        """The stages of gradient descent, by their position."""
        return {i: stage for i, stage in enumerate(self.stages) if isinstance(stage, TrainStage)}

    def _facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "backbone": self.backbone.origin,
            "data": self.data.source,
            "stages": tuple(f"{stage.name} ({stage.type})" for stage in self.stages),
            "seed": self.seed,
        }

    def _repr_html_(self) -> str:
        from finetune.page.html import render

        more = "the whole recipe", without_secrets(dump_recipe(self))
        return render("facts.html", title="Recipe", facts=table_rows(self._facts()), more=more)

    def without_effect(self) -> Mapping[str, str]:
        cases: dict[str, str] = {}
        if not self.train_stages:
            case = "without a stage of type: train: leave it out"
            cases |= {"head.dropout": case, "data.sampling": case, "data.cache_shortest_edge": case}
            cases |= {"save.every": case, "save.keep_best": case}
        if isinstance(self.backbone, PretrainedConfig) and not self._may_train_backbone:
            case = "where no stage trains the backbone: leave it out"
            cases |= {"backbone.dropout": case, "backbone.drop_path": case}
        if self.head.init == "lecun_normal" and self.stages and isinstance(self.stages[0], HeadStage):
            cases["head.init"] = "before a stage that fits the head from the start: leave it out"
        if self.head.init != "zero_shot" and not any(isinstance(stage, TextStage) for stage in self.stages):
            case = f"with init: {self.head.init} and no stage that reads class names: leave it out"
            cases["head.templates"] = f"{case}, or use init: zero_shot"
        for i, stage in self.train_stages.items():
            if not self._may_draw_random_numbers(stage):
                cases[f"stages.{i}.rng_impl"] = (
                    "in a stage that trains the head alone, without dropout, mixing or erasing: leave it out"
                )
            if reason := self._nothing_to_carry_into(i):
                cases[f"stages.{i}.carry_optimizer_state"] = reason
            if stage.loss.class_weights == "balanced" and self.data.shots_per_class is not None:
                cases[f"stages.{i}.loss.class_weights"] = (
                    "with shots_per_class, which makes all classes equally large: leave it out"
                )
        return cases

    @property
    def _may_train_backbone(self) -> bool:
        """Whether the backbone may compute as in training: for gradients, or to update its statistics."""
        stages = self.train_stages.values()
        updates = any(rule.batch_norm == "update" for stage in stages for rule in stage.partitions)
        return updates or any(stage.may_train_backbone for stage in stages)

    def _may_draw_random_numbers(self, stage: TrainStage) -> bool:
        """Whether the stage's steps or its adapters may, as far as the recipe shows."""
        updates = any(rule.batch_norm == "update" for rule in stage.partitions)  # as a backbone in training does
        adapts = any(rule.lora for rule in stage.partitions)
        return bool(stage.may_train_backbone or updates or adapts or stage.augments_on_device or self.head.dropout)

    def _nothing_to_carry_into(self, index: int) -> str | None:
        """In which case a stage can take over no optimizer state from the one before."""
        before = self.train_stages.get(index - 1)
        if before is None:
            return "without a training stage right before this one: leave it out"
        optimizers = [partition.optimizer for partition in before.trainable if has_state(partition.optimizer)]
        if not any(partition.optimizer in optimizers for partition in self.train_stages[index].trainable):
            return f"where no partition has a stateful optimizer of stage {before.name!r}: leave it out"
        return None

    @model_validator(mode="after")
    def _stages_have_different_names(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise mistakes(self, {f"stages.{i}.name": f"stages need different names; used twice: {name}"})
        return self

    @model_validator(mode="after")
    def _trackers_are_different(self) -> Recipe:
        names = [tracker.name for tracker in self.trackers]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise mistakes(self, {f"trackers.{i}": f"{name} is among the trackers already: leave one out"})
        return self

    @model_validator(mode="after")
    def _has_something_to_measure(self) -> Recipe:
        if not self.stages and not self.head.classifies_from_the_start:
            message = "a recipe needs a stage, unless its head classifies from the start: zero_shot or pretrained"
            raise mistakes(self, {"stages": message})
        return self

    @model_validator(mode="after")
    def _head_fits_backbone_and_stages(self) -> Recipe:
        if self.head.init == "pretrained" and not isinstance(self.backbone, PretrainedConfig):
            message = "pretrained is for a pretrained backbone; a module's own weights have no classifier beside them"
            raise mistakes(self, {"head.init": message})
        if self.head.init != "none":
            return self
        if self.evaluate.unknown != "energy":
            message = f"{self.evaluate.unknown} reads the features before a head, and head.init: none adds none"
            raise mistakes(self, {"evaluate.unknown": message})
        if isinstance(self.backbone, PretrainedConfig):
            message = "none is for a module that outputs logits itself; a pretrained backbone needs a head"
            raise mistakes(self, {"head.init": message})
        for i, stage in enumerate(self.stages):
            if isinstance(stage, HeadStage):
                raise mistakes(self, {f"stages.{i}.type": f"{stage.type} fits the head, and head.init: none adds none"})
        return self


def load_recipe(path_or_name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path_or_name: a YAML file, or the name of a bundled recipe (``finetune ls`` lists them).
        overrides: ``dotted.key=value`` sets (list items by number), ``~dotted.key`` deletes. Paths in overrides are
            relative to the working directory, and those in a file to its folder.

    Raises:
        RecipeError: naming file and line (or the override), what was received, and what is valid.
    """
    file = find_recipe(path_or_name)
    source = RecipeSource.read(file)
    for override in overrides:
        source.override(override, partial(takes_text, Recipe))
    if file not in resources.recipes().values():  # these leave the place of your files to you
        further = [("evaluate", "also", name) for name in source.keys_at(("evaluate", "also"))]
        source.make_paths_absolute([*_PATHS, *further], _is_name)
    source.document.setdefault("name", source.path.stem)
    try:
        return Recipe.model_validate(source.plain())
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(e, source) for e in error.errors()[:_MISTAKES])) from None


def _is_name(value: str) -> bool:
    """Whether a source is no path as it stands: one of the toolkit's own names, or an id on the hub."""
    known = value in ("digits", "memory") or value.startswith("builtin:")
    return known or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", value) is not None


def read_data_config(source: str, overrides: Iterable[str] = ()) -> DataConfig:
    """The images of a source.

    Args:
        overrides: options such as ``data.columns.label=species``.

    Raises:
        RecipeError: naming the override, what was received, and what is valid.
    """
    document = RecipeSource(Path("data"), CommentedMap(data=CommentedMap(source=source)))
    for override in overrides:
        if not override.lstrip("~").startswith("data."):
            raise RecipeError(f"override {override!r}: only options of the data, such as data.columns.label=NAME")
        document.override(override, partial(takes_text, Recipe))
    try:
        return DataConfig.model_validate(document.plain()["data"])
    except ValidationError as error:
        explained = [_explain({**e, "loc": ("data", *e["loc"])}, document) for e in error.errors()[:_MISTAKES]]
        raise RecipeError("\n".join(explained)) from None


def find_recipe(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if os.path.isfile(path):  # a Path raises where the name is too long
        return path
    names = resources.recipes()
    if str(path_or_name) in names:
        return names[str(path_or_name)]
    if os.path.isdir(path):
        raise RecipeError(f"{shown(path)}: a folder, not a recipe file")
    if os.path.exists(path):
        raise RecipeError(f"{shown(path)}: not a regular file, such as a pipe or device; give a file")
    raise RecipeError(
        f"{shown(path_or_name)}: no such file, and no bundled recipe of that name"
        f"{nearest(str(path_or_name), names)}; bundled: {', '.join(names)}"
    )


def _explain(error: Any, source: RecipeSource) -> str:
    """One line for one of pydantic's errors: where, what, received, valid."""
    at, valid = locate(Recipe, error["loc"])
    dotted = shown(".".join(map(str, at)) or "recipe")
    where = source.where(at)
    if error["type"] == "extra_forbidden":
        options = sorted(valid)
        meant = _ABBREVIATIONS.get(str(at[-1]), str(at[-1]))
        return f"{where}: unknown key {dotted!r}{nearest(meant, options)}; valid here: {', '.join(options)}"
    if error["type"] == "union_tag_invalid":
        tag, tags = error["ctx"]["tag"], error["ctx"]["expected_tags"].replace("'", "").split(", ")
        kind = error["ctx"]["discriminator"].strip("'_()")
        return f"{where}: {dotted}: unknown {kind} '{shown(tag)}'{nearest(tag, tags)}; choose {', '.join(tags)}"
    if error["type"] == "union_tag_not_found":
        key = error["ctx"]["discriminator"].strip("'")
        part = f"of the {at[-2]}" if isinstance(at[-1], int) else at[-1]
        return f"{where}: {dotted}: {key!r} is missing: it says which {part} the options are of"
    if error["type"] == "missing":
        return f"{where}: {dotted!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    received = error["input"]
    if isinstance(received, str | int | float | bool) or received is None:
        return f"{where}: {dotted}: {message}; received {shown(repr(received))}"
    return f"{where}: {dotted}: {message}"
