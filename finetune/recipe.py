"""A recipe: what to fine-tune, on what, and how. Strict, so that a typo is an error and never a silent default."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from finetune import bundled
from finetune.errors import RecipeError, nearest
from finetune.recipe_source import RecipeSource

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Part(BaseModel):
    """Base of every part: unknown keys and loose types are errors, and a part does not change once made."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class BackboneConfig(Part):
    """The pretrained model: a folder, a hub id (``owner/name[@revision]``), or ``builtin:tiny-clip``."""

    source: str
    revision: str | None = None
    image_size: int | None = Field(None, ge=8, le=4096)  # edge in pixels; the checkpoint's own by default


class HeadConfig(Part):
    """The layer that is put on the backbone's pooled features."""

    init: Literal["zeros", "zero_shot"] = "zeros"
    templates: list[str] = ["a photo of a {}"]  # prompts of the zero-shot head; {} stands for the class name
    num_classes: int | None = Field(None, ge=2)  # checked against the data where given
    dropout: float = Field(0.0, ge=0, lt=1)

    @field_validator("templates")
    @classmethod
    def _one_place_for_the_class(cls, templates: list[str]) -> list[str]:
        if not templates or any(t.count("{}") != 1 for t in templates):
            raise ValueError("each template needs {} once, where the class name goes")
        return templates


class DataConfig(Part):
    """The labelled images: ``digits`` (scikit-learn's handwritten digits) or a folder with a folder for each class."""

    source: str
    shots_per_class: int | None = Field(None, ge=1)  # training images kept of each class; None keeps all
    validation: float = Field(0.1, ge=0, lt=1)  # taken from training where the source has no such split
    test: float = Field(0.2, gt=0, lt=1)  # likewise
    workers: int = Field(0, ge=0)  # processes that decode; 0 uses threads

    @model_validator(mode="after")
    def _shots_are_all_there_is(self) -> DataConfig:
        if self.shots_per_class is not None and "validation" in self.model_fields_set and self.validation > 0:
            raise ValueError("with shots_per_class no validation images are held out: leave validation out, or say 0")
        return self


class Schedule(Part):
    """Learning rate over a stage: a linear warm-up, then the named curve down to ``end`` times the peak."""

    name: Literal["constant", "cosine", "linear"] = "constant"
    warmup: float = Field(0.0, ge=0, lt=1)  # fraction of the stage's steps
    end: float = Field(0.0, ge=0, le=1)  # last rate as a fraction of the peak; a constant schedule has none


class Partition(Part):
    """Who learns, how fast. ``match`` is a regular expression for whole parameter paths such as ``head/kernel``."""

    match: str
    frozen: bool = False
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float | None = Field(None, gt=0)  # peak, per step
    weight_decay: float = Field(0.0, ge=0)  # decoupled; kernels only, never norms and biases
    momentum: float = Field(0.9, ge=0, lt=1)  # of sgd
    schedule: Schedule = Schedule()

    @field_validator("match")
    @classmethod
    def _is_a_regular_expression(cls, match: str) -> str:
        try:
            re.compile(match)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        return match

    @model_validator(mode="after")
    def _learns_or_is_frozen(self) -> Partition:
        if not self.frozen and self.learning_rate is None:
            raise ValueError("a partition needs learning_rate, or frozen: true")
        learns = self.model_fields_set & {"optimizer", "learning_rate", "weight_decay", "momentum", "schedule"}
        if self.frozen and learns:
            raise ValueError(f"a frozen partition takes no {', '.join(sorted(learns))}")
        return self


class ProbeStage(Part):
    """Multinomial logistic regression on the frozen backbone's pooled features, which are computed once."""

    name: Name = "probe"
    solver: Literal["lbfgs"]
    l2: float | None = Field(None, gt=0)  # strength; None: chosen by cross-validation on the training images


class TrainStage(Part):
    """Gradient descent over the partitions."""

    name: Name = "finetune"
    epochs: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    batch_size: int = Field(64, ge=1)
    partitions: list[Partition] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_duration(self) -> TrainStage:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a stage needs either epochs or steps")
        if all(partition.frozen for partition in self.partitions):
            raise ValueError("every partition is frozen: nothing would learn")
        return self


def _stage_kind(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return "probe" if "solver" in keys else "train"


Stage = Annotated[Annotated[ProbeStage, Tag("probe")] | Annotated[TrainStage, Tag("train")], Discriminator(_stage_kind)]


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
    names = bundled.recipes()
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
    at, valid = _locate(error["loc"])
    dotted = ".".join(map(str, at)) or "recipe"
    where = source.where(at)
    if error["type"] == "extra_forbidden":
        options = sorted(valid)
        return f"{where}: unknown key {dotted!r}{nearest(str(at[-1]), options)}; valid here: {', '.join(options)}"
    if error["type"] == "missing":
        return f"{where}: {dotted!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    received = error["input"]
    if isinstance(received, str | int | float | bool) or received is None:
        return f"{where}: {dotted}: {message}; received {received!r}"
    return f"{where}: {dotted}: {message}"


def _locate(loc: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], Iterable[str]]:
    """A finding's path in the document (union tags dropped) and the keys that its parent knows."""
    kinds: dict[str | int, type[Part]] = {"probe": ProbeStage, "train": TrainStage}
    at: list[str | int] = []
    part: type[BaseModel] = Recipe
    for depth, key in enumerate(loc):
        if loc[0] == "stages" and depth == 2 and key in kinds:
            part = kinds[key]
            continue
        at.append(key)
        if depth < len(loc) - 1 and key in part.model_fields:
            part = _part_in(part.model_fields[str(key)].annotation) or part
    return tuple(at), part.model_fields


def _part_in(annotation: Any) -> type[BaseModel] | None:
    """The recipe part inside a field's type, such as Partition in ``list[Partition]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((part for inner in get_args(annotation) if (part := _part_in(inner))), None)
