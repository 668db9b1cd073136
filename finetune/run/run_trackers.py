"""The trackers of a run: what they are told of its records, and what becomes of them when they fail.

Each works in a thread of its own, so that training never waits for a network. ``trackers.json`` in the run's folder
remembers how to go on with each of them, and up to which step it has what: a run that goes on tells none a thing twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from finetune.errors import CheckpointError, Diverged, Interrupted, first_line
from finetune.folder.run_folder import RunFolder, dotted
from finetune.recipe import Recipe
from finetune.trackers.tracker import Status, TrackedRun, Tracker

_BY_PARTITION = ("learning_rate", "grad_norm")
_NO_CURVES = ("step", "epoch", "n", "share")
_PATIENCE: Mapping[Status, float] = {"finished": 60.0, "interrupted": 3.0}  # seconds, to take the last numbers in
_OTHERWISE, _HURRIED = 10.0, 3.0

Scalars = dict[str, float]


def scalars_of(record: Mapping[str, Any]) -> Scalars:
    """The numbers of a record of ``metrics.jsonl`` by name: ``train/loss``, ``learning_rate/<partition>``.

    The mixtures that interpolation looks at are none: they have no place on an axis of steps.
    """
    if "split" not in record or "share" in record:
        return {}
    named = {f"{record['split']}/{key}": value for key, value in record.items() if key not in _NO_CURVES}
    for group in _BY_PARTITION:
        named |= {f"{group}/{label}": value for label, value in record.get(group, {}).items()}
    return {name: float(value) for name, value in named.items() if _is_finite_number(value)}


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


class StepsOfRun:
    """The axis of all stages: their steps one after the other. What follows the last stage is one more."""

    def __init__(self, recipe: Recipe, lengths: Sequence[int]) -> None:
        """
        Args:
            lengths: steps of each stage.
        """
        self._before = recipe.head.init
        self._total = sum(lengths)
        self._stages = {stage.name: (sum(lengths[:i]), lengths[i]) for i, stage in enumerate(recipe.stages)}

    def of(self, record: Mapping[str, Any]) -> int:
        """Where a record stands; at the end of its stage where it names no step."""
        if record["stage"] not in self._stages:
            return 0 if record["stage"] == self._before else self._total + 1
        first, length = self._stages[record["stage"]]
        return first + int(record.get("step", length))


class RunTrackers:
    """All of a run's. While entered, they follow; at the end they are told how it ended."""

    def __init__(
        self,
        trackers: Sequence[Tracker],
        folder: RunFolder,
        steps: StepsOfRun,
        say: Callable[[str], None],
        hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        """What they have been told by now; before the log is cut back to a saved state.

        Args:
            hurried: whether a signal has come.
        """
        self._folder, self._steps, self._say, self._hurried = folder, steps, say, hurried
        self._lock, self._over = threading.Lock(), False
        known = folder.tracked() if trackers else {}
        logged = _last_steps(self._records(), steps) if known else {}
        self._followers: list[_Follower] = []
        for tracker in trackers:
            key = self._free_key(getattr(tracker, "name", None) or type(tracker).__name__)
            before = known.get(key)
            sent = dict(before["sent"]) if before else {}
            if before and not before["ended"]:  # it was killed: all that was logged had been sent
                sent = {name: max(sent.get(name, -1), logged.get(name, -1)) for name in sent | logged}
            id = before["id"] if before else None
            follower = _Follower(key, tracker, id, sent, say, self._remember, known=before is not None)
            self._followers.append(follower)

    def _free_key(self, name: str) -> str:
        keys = [follower.key for follower in self._followers]
        return name if name not in keys else f"{name}-{keys.count(name) + 1}"

    def _records(self) -> list[dict[str, Any]]:
        try:
            return self._folder.records() if self._folder.metrics.file.is_file() else []
        except CheckpointError:  # it is damaged, and begins anew
            return []

    def begin(self, recipe: Recipe, step: int) -> None:
        """From here on they follow. What the log has and a tracker does not, it is told first.

        Args:
            step: that the run goes on from, over all stages.
        """
        if not self._followers:
            return
        config = dotted(recipe.model_dump(mode="json", exclude={"trackers"}))
        for follower in self._followers:
            follower.begin(TrackedRun(recipe.name, self._folder.directory, config, follower.id, step))
        for record in self._records():
            self.log(record)

    def log(self, record: Mapping[str, Any]) -> None:
        if self._followers and (scalars := scalars_of(record)):
            for follower in self._followers:
                follower.log(scalars, self._steps.of(record))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status: Status = "finished" if kind is None else "failed"
        if kind is not None and issubclass(kind, Interrupted | Diverged):
            status = "interrupted" if issubclass(kind, Interrupted) else "diverged"
        self._finish(status)
        with self._lock:
            self._over = True  # the folder is no longer this run's alone

    def _finish(self, status: Status) -> None:
        for follower in self._followers:
            follower.end(status)
        until = time.monotonic() + _PATIENCE.get(status, _OTHERWISE)
        while busy := [follower.key for follower in self._followers if follower.busy]:
            if self._hurried():
                until = min(until, time.monotonic() + _HURRIED)
            if time.monotonic() > until:
                self._say(f"{', '.join(busy)}: not done in time: the last numbers may be missing there")
                return
            time.sleep(0.01)

    def _remember(self) -> None:
        """Writes down how to go on."""
        with self._lock:
            if not self._over:
                self._folder.write_tracked({each.key: each.to_json() for each in self._followers if each.known})


def _last_steps(records: Iterable[Mapping[str, Any]], steps: StepsOfRun) -> dict[str, int]:
    """The last step of each number."""
    last: dict[str, int] = {}
    for record in records:
        for name in scalars_of(record):
            last[name] = max(last.get(name, -1), steps.of(record))
    return last


class _Follower:
    """A tracker in its thread.

    Attributes:
        id: by which it goes on.
        known: it has started, now or before.
    """

    def __init__(
        self,
        key: str,
        tracker: Tracker,
        id: str | None,
        sent: dict[str, int],
        say: Callable[[str], None],
        remember: Callable[[], None],
        *,
        known: bool,
    ) -> None:
        """
        Args:
            sent: the last step of each number that it has.
            remember: writes down what :meth:`to_json` gives.
        """
        self.key, self.id, self.known = key, id, known
        self._tracker, self._sent, self._say, self._remember = tracker, sent, say, remember
        self._ended = False
        self._queue: SimpleQueue[tuple[Scalars, int] | Status] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "sent": dict(self._sent), "ended": self._ended}

    def begin(self, run: TrackedRun) -> None:
        if run.id is not None and getattr(self._tracker, "rewinds", False):
            self._sent = {name: min(step, run.step - 1) for name, step in self._sent.items()}
        self._thread = threading.Thread(target=self._work, args=(run,), name=f"tracker {self.key}", daemon=True)
        self._thread.start()

    def log(self, scalars: Scalars, step: int) -> None:
        self._queue.put((scalars, step))

    def end(self, status: Status) -> None:
        self._queue.put(status)

    def _work(self, run: TrackedRun) -> None:
        try:
            self.id, self.known = self._tracker.start(run), True
            self._remember()
            while not isinstance(item := self._queue.get(), str):
                self._take(*item)
            self._tracker.finish(item)
        except Exception as error:
            self._say(
                f"{self.key}: {type(error).__name__}: {first_line(error)}: it is left out from here on, and the run "
                "goes on; metrics.jsonl has everything"
            )
        self._ended = True
        if self.known:
            self._remember()

    def _take(self, scalars: Scalars, step: int) -> None:
        new = {name: value for name, value in scalars.items() if step > self._sent.get(name, -1)}
        if new:
            self._tracker.log(new, step)
            self._sent |= dict.fromkeys(new, step)
