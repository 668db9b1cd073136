"""What a run tells a tracker, and what it asks of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["finished", "interrupted", "diverged", "failed"]


@dataclass(frozen=True)
class TrackedRun:
    """A run that a tracker is about to follow.

    Attributes:
        name: the recipe's.
        folder: the run's.
        config: the recipe but for its trackers, each value by its dotted key, such as ``stages.0.batch_size``.
        id: what the tracker's ``start`` gave at the run's beginning; None for a run that it does not know.
        step: that the run goes on from, counted over all stages; 0 at its beginning.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    id: str | None = None
    step: int = 0


class Tracker(Protocol):
    """Follows a run. Its methods are called in a thread of its own, one after the other.

    A tracker that raises is left out from then on, with a warning; the run goes on. One that sets ``rewinds = True``
    forgets, where it is started with an id, what it has from ``run.step`` on; it is told that once more.
    """

    def start(self, run: TrackedRun) -> str | None:
        """Begins, or goes on with ``run.id``; gives the id to go on with later."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Numbers by name, such as ``train/loss``, at a step counted over all stages."""

    def finish(self, status: Status) -> None:
        """The run has ended, or is interrupted and may go on later."""
