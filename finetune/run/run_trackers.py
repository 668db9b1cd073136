"""The trackers of a run: what they are told of its records, and what becomes of them when they fail.

Each works in a thread of its own, so that training never waits for a network. ``trackers.json`` in the run's folder
remembers how to go on with each of them, and how far each was told: a run that goes on tells none a thing twice.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, Self

from finetune.errors import CheckpointError, Diverged, Interrupted, first_line
from finetune.folder.run_folder import RunFolder, dotted
from finetune.recipe import Recipe
from finetune.trackers.tracker import Status, TrackedRun, Tracker

_BY_PARTITION = ("learning_rate", "grad_norm")
_NO_CURVES = ("step", "epoch", "n")
_PATIENCE: Mapping[Status, float] = {"finished": 60.0, "interrupted": 3.0, "diverged": 10.0, "failed": 10.0}  # seconds
_HURRIED = 3.0  # seconds, once a signal has come


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record of ``metrics.jsonl`` by name: ``train/loss``, ``learning_rate/<partition>``.

    The mixtures that interpolation looks at have none: they have no place on an axis of steps.
    """
    if "split" not in record or "share" in record:
        return {}
    named = {f"{record['split']}/{key}": value for key, value in record.items() if key not in _NO_CURVES}
    for group in _BY_PARTITION:
        named |= {f"{group}/{label}": value for label, value in record.get(group, {}).items()}
    return {name: float(value) for name, value in named.items() if _is_finite(value)}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
        """
        Args:
            hurried: whether a signal has come.
        """
        self._folder, self._steps, self._say, self._hurried = folder, steps, say, hurried
        self._lock, self._over = threading.Lock(), False
        known = folder.tracked() if trackers else {}
        self._followers: list[_Follower] = []
        for tracker in trackers:
            key = self._free_key(getattr(tracker, "name", None) or type(tracker).__name__)
            self._followers.append(_Follower(key, tracker, known.get(key), self._tell, self._remember))

    def _free_key(self, name: str) -> str:
        keys = {follower.key for follower in self._followers}
        numbered = (f"{name}-{number}" for number in range(2, len(keys) + 3))
        return next(key for key in (name, *numbered) if key not in keys)

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

    def _records(self) -> list[dict[str, Any]]:
        try:
            return self._folder.metrics.records() if self._folder.metrics.file.is_file() else []
        except CheckpointError:  # whoever reads the log says so
            return []

    def log(self, record: Mapping[str, Any]) -> None:
        if self._followers and (scalars := scalars_of(record)):
            news = _News(record["split"], self._steps.of(record), scalars)
            for follower in self._followers:
                follower.put(news)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kinds: dict[type[BaseException], Status] = {Interrupted: "interrupted", Diverged: "diverged"}
        self._finish("finished" if kind is None else kinds.get(kind, "failed"))
        with self._lock:
            self._over = True  # the folder is no longer this run's alone

    def _finish(self, status: Status) -> None:
        for follower in self._followers:
            follower.put(status)
        until = time.monotonic() + _PATIENCE[status]
        while busy := [follower.key for follower in self._followers if follower.busy]:
            if self._hurried():
                until = min(until, time.monotonic() + _HURRIED)
            if time.monotonic() > until:
                self._say(f"{', '.join(busy)}: not done in time: the last numbers may be missing there")
                return
            time.sleep(0.01)

    def _tell(self, line: str) -> None:
        """Says what has happened to a tracker, as long as the run goes on."""
        if not self._over:
            self._say(line)

    def _remember(self) -> None:
        """Writes down how to go on."""
        with self._lock:
            if not self._over:
                self._folder.write_tracked({each.key: each.to_json() for each in self._followers if each.known})


class _News(NamedTuple):
    """What a tracker is told at once: the numbers of a split at a step."""

    split: str
    step: int
    scalars: dict[str, float]


class _Follower:
    """A tracker in its thread.

    Attributes:
        key: what it is called.
        id: by which it goes on.
        known: it has started, now or before.
    """

    def __init__(
        self,
        key: str,
        tracker: Tracker,
        before: Mapping[str, Any] | None,
        say: Callable[[str], None],
        remember: Callable[[], None],
    ) -> None:
        """
        Args:
            before: what :meth:`to_json` gave where the run was begun.
            remember: is called when it would give something else.
        """
        self.key, self.known = key, before is not None
        self.id: str | None = before["id"] if before else None
        self._told: dict[str, int] = dict(before["told"]) if before else {}  # the last step of each split
        self._tracker, self._say, self._remember = tracker, say, remember
        self._queue: SimpleQueue[_News | Status] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "told": dict(self._told)}

    def begin(self, run: TrackedRun) -> None:
        if run.id is not None and getattr(self._tracker, "rewinds", False):
            self._told = {split: min(step, run.step - 1) for split, step in self._told.items()}
        self._thread = threading.Thread(target=self._work, args=(run,), name=f"tracker {self.key}", daemon=True)
        self._thread.start()

    def put(self, news: _News | Status) -> None:
        self._queue.put(news)

    def _work(self, run: TrackedRun) -> None:
        try:
            self.id, self.known = self._tracker.start(run), True
            self._remember()
            while isinstance(news := self._queue.get(), _News):
                if news.step > self._told.get(news.split, -1):
                    self._tracker.log(news.scalars, news.step)
                    self._told[news.split] = news.step
                    self._remember()
            self._tracker.finish(news)
        except Exception as error:
            self._say(
                f"{self.key}: {type(error).__name__}: {first_line(error)}: it is left out from here on, and the run "
                "goes on; metrics.jsonl has everything"
            )
