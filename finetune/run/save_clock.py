"""When a state of a stage under way is due to be saved."""

from __future__ import annotations

import time

from finetune.recipe.saving import Every

_MINUTES = 5.0  # that are lost at most, where the recipe does not say


class SaveClock:
    """Counts since the last state was saved."""

    def __init__(self, every: Every | None, steps_per_epoch: int) -> None:
        self._epoch = steps_per_epoch
        self._every = every or Every(minutes=_MINUTES)
        self._each_epoch = every is None
        self.start()

    def start(self) -> None:
        """A state is saved."""
        self._since = time.monotonic()

    @property
    def by_time(self) -> bool:
        return self._every.minutes is not None

    def is_time(self) -> bool:
        """Whether the minutes have passed."""
        return time.monotonic() - self._since >= 60 * (self._every.minutes or 0.0)

    def due(self, step: int) -> bool:
        """Whether it is time after a step of the stage."""
        every = self._every
        if self.by_time:
            return self.is_time() or (self._each_epoch and self._ends_epoch(step))
        return step % (every.steps or self._epoch * (every.epochs or 1)) == 0

    def _ends_epoch(self, step: int) -> bool:
        return step % self._epoch == 0
