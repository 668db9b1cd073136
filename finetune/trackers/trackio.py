"""Trackio: a database on this machine, or a Space of the Hugging Face hub."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout

from finetune.recipe.trackers import TrackioConfig
from finetune.trackers.tracker import Status, TrackedRun


class TrackioTracker:
    """Follows a run by Trackio, which goes on by a run's name: the name gets four characters of its own."""

    name = "trackio"

    def __init__(self, config: TrackioConfig) -> None:
        self._config = config

    def start(self, run: TrackedRun) -> str:
        import trackio

        config = self._config
        with redirect_stdout(sys.stderr):  # standard output is for results
            self._run = trackio.init(
                project=config.project,
                name=run.id or f"{config.run_name or run.name}-{secrets.token_hex(2)}",
                group=config.group,
                space_id=config.space,
                config=dict(run.config),
                resume="never" if run.id is None else "allow",
                embed=False,
            )
        return str(self._run.name)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def finish(self, status: Status) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()
