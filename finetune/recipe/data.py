"""The labelled images of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from finetune.recipe.base import Part


class Columns(Part):
    """Which columns of a table have which role; those left out are told by their types."""

    image: str | None = None
    label: str | list[str] | None = None  # several: one column of 0 and 1 for each class, for images with many labels
    split: str | None = None  # names the split of each row: train, validation or test


class DataConfig(Part):
    """Where labelled images come from, and what becomes of them.

    Attributes:
        source: ``digits`` (scikit-learn's handwritten digits); a folder with a folder for each class, at the top or
            inside train/, validation/ and test/; a folder of Parquet files, or one that ``datasets`` saved; a .csv,
            .tsv, .parquet or .npz file; a dataset's hub id (``owner/name``); or ``memory``, for datasets given to
            :func:`finetune.run`.
        subset: configuration of a hub dataset that has several.
        revision: of a hub dataset.
        columns: roles, where types alone do not tell them.
        shots_per_class: training images kept of each class; None keeps all.
        fraction: share of the training images kept, of each class alike.
        validation, test: shares taken from training where the source has no such split.
        sampling: ``balanced`` shows every class equally often, whatever its number of images.
        on_broken_image: ``skip`` leaves broken images out, of every split, and lists them; ``error`` stops the run.
        cache_shortest_edge: training images are decoded once and kept on disk with this shorter edge in pixels.
        num_workers: processes that decode; 0 uses threads.
    """

    source: str
    subset: str | None = None
    revision: str | None = None
    columns: Columns = Columns()
    shots_per_class: int | None = Field(None, ge=1)
    fraction: float = Field(1.0, gt=0, le=1)
    validation: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.2, gt=0, lt=1)
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    on_broken_image: Literal["error", "skip"] = "error"
    cache_shortest_edge: int | None = Field(None, ge=8, le=4096)
    num_workers: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _shots_are_all_there_is(self) -> DataConfig:
        if self.shots_per_class is None:
            return self
        if "validation" in self.model_fields_set and self.validation > 0:
            raise ValueError("with shots_per_class no validation images are held out: leave validation out, or say 0")
        if self.fraction < 1:
            raise ValueError("shots_per_class and fraction both say how many training images to keep: give one of them")
        return self
