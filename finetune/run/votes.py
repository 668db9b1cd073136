"""Whether a run stops, or saves, after a step: its processes agree on that."""

from __future__ import annotations

from signal import Signals

from finetune.distributed.processes import Poll, process_count
from finetune.run.save_clock import SaveClock
from finetune.run.shared_checkpoints import SharedCheckpoints
from finetune.signals import StopSignal


class Votes:
    """Asked by the loop after each step. Several processes agree about once a second."""

    def __init__(self, signal: StopSignal, clock: SaveClock, checkpoints: SharedCheckpoints) -> None:
        self._signal, self._clock, self._checkpoints = signal, clock, checkpoints
        self._poll, self._save = Poll(), False

    def should_stop(self) -> bool:
        """A signal has come, here or to another process, which this one then knows of."""
        if process_count() == 1:
            return self._signal.received is not None
        time_to_save = self._clock.by_time and self._clock.is_time() and not self._checkpoints.busy
        votes = self._poll([int(self._signal.received or 0), time_to_save])
        if votes is None:
            self._save = False
            return False
        self._save = votes[0][1]  # the primary's, which writes
        if number := max(number for number, _ in votes):
            self._signal.received = Signals(number)
        return bool(number)

    def should_save(self, step: int) -> bool:
        if process_count() == 1:
            return self._clock.due(step) and not self._checkpoints.busy
        return self._save if self._clock.by_time else self._clock.due(step)
