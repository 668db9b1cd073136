"""When a run saves what it takes to go on, and what of it is kept."""

from __future__ import annotations

from pydantic import Field, model_validator

from finetune.recipe.base import Part, mistakes


class Every(Part):
    """How often a state is saved: one of these.

    Attributes:
        minutes: of training, evaluation and all else.
        steps: of the optimizer.
        epochs: of a stage.
    """

    minutes: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Every:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if not given:
            raise mistakes(self, {"minutes": "say how often: minutes, steps or epochs"})
        if len(given) > 1:
            raise mistakes(self, {given[1]: f"{' and '.join(given)} are two ways to say how often: leave one out"})
        return self


class SaveConfig(Part):
    """What a run saves of its state.

    The end of a stage, the best epochs on validation and where a signal stops the run are saved in any case.

    Attributes:
        every: how often; by default each epoch, and every five minutes within one.
        keep_last: newest states that are kept. With one alone, a damaged one leaves nothing to go on from.
        keep_best: states with the best validation scores that are kept.
        mirror: URL of a folder (``s3://``, ``gs://`` and what else fsspec knows) that the run's folder is copied to
            after each saved state. ``--resume`` brings the copy back where the run's folder is not there.
    """

    every: Every | None = None
    keep_last: int = Field(2, ge=1)
    keep_best: int = Field(1, ge=1)
    mirror: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9+.-]+://.+")
