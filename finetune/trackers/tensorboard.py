"""TensorBoard's event files, in the run's folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from finetune.folder.contents import EVENTS
from finetune.trackers.tracker import Status, TrackedRun


class TensorBoardTracker:
    """Writes event files. What a file before has from the step that a run goes on from, TensorBoard forgets."""

    name, rewinds = "tensorboard", True

    def start(self, run: TrackedRun) -> str:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(run.folder / EVENTS))
        if run.id is not None:
            self._add(run.step, session_log=SessionLog(status=SessionLog.START))
        return EVENTS

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._add(step, summary=Summary(value=values))
        self._writer.flush()

    def finish(self, status: Status) -> None:
        self._writer.close()

    def _add(self, step: int, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, **what))
