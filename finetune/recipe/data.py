"""The labelled images of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from finetune.recipe.base import Part, mistakes


class Columns(Part):
    """The roles of a table's columns; those left out are inferred from the columns' types.

    Attributes:
        image: paths of images, or images.
        label: classes; several columns of 0 and 1, one for each class, for images with several labels.
        split: the split of each row: train, validation or test.
    """

    image: str | None = None
    label: str | list[str] | None = None
    split: str | None = None


class DataConfig(Part):
    """Where labelled images come from, and how they are split.

    Attributes:
        source: ``digits`` (scikit-learn's handwritten digits); a folder with a folder for each class, at the top or
            inside train/, validation/ and test/; a folder of Parquet files, or one that ``datasets`` saved; a .csv,
            .tsv, .parquet or .npz file; a dataset's hub id (``owner/name``); or ``memory``, for datasets passed to
            :func:`finetune.run`.
        subset: configuration of a hub dataset that has several.
        revision: branch, tag or commit of a hub dataset.
        columns: roles of a table's columns, where their types leave a choice.
        shots_per_class: training images kept of each class; by default all.
        fraction: share of the training images kept, of each class alike.
        validation: share of the training images held out for validation where the source has no such split; none with
            ``shots_per_class``.
        test: share held out for testing where the source has no such split.
        rare_classes: of classes with too few images for every split to have some, ``keep`` says what follows from it,
            ``drop`` leaves out those with fewer than two training images (and images of classes that training does not
            have), and ``error`` stops.
        sampling: ``balanced`` shows every class equally often, whatever its number of images.
        on_broken_image: ``skip`` leaves broken images out, of every split, and lists them; ``error`` stops the run.
        cache_shortest_edge: training images are decoded once and kept on disk with this shorter edge in pixels.
        num_workers: processes that decode; 0 uses threads.
    """

    active_defaults: ClassVar[frozenset[str]] = frozenset({"validation"})

    source: str
    subset: str | None = None
    revision: str | None = None
    columns: Columns = Columns()
    shots_per_class: int | None = Field(None, ge=1)
    fraction: float = Field(1.0, gt=0, le=1)
    validation: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.2, gt=0, lt=1)
    rare_classes: Literal["keep", "drop", "error"] = "keep"
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    on_broken_image: Literal["error", "skip"] = "error"
    cache_shortest_edge: int | None = Field(None, ge=8, le=4096)
    num_workers: int = Field(0, ge=0)

    def with_columns_of(self, other: DataConfig) -> DataConfig:
        """With another's roles of columns where none are given; they do not count as asked for."""
        if "columns" in self.model_fields_set:
            return self
        return DataConfig.model_construct(self.model_fields_set, **{**dict(self), "columns": other.columns})

    def without_effect(self) -> Mapping[str, str]:
        cases = {}
        if self.shots_per_class is not None:
            cases["validation"] = "with shots_per_class, which holds out no validation images: leave it out, or say 0"
        if self.source == "digits":
            cases |= dict.fromkeys(("subset", "revision", "columns"), "on the digits, which are no table: leave it out")
            cases["cache_shortest_edge"] = "on the digits, which are decoded already: leave it out"
            cases["on_broken_image"] = "on the digits, none of which is broken: leave it out"
            cases["rare_classes"] = "on the digits, which have many images of each class: leave it out"
        elif self.source == "memory":
            cases |= dict.fromkeys(("subset", "revision"), "on datasets in memory: leave it out")
        return cases

    @model_validator(mode="after")
    def _one_size_of_the_training_set(self) -> DataConfig:
        if self.shots_per_class is not None and self.fraction < 1:
            message = "shots_per_class and fraction both say how many training images to keep: give one of them"
            raise mistakes(self, {"fraction": message})
        return self
