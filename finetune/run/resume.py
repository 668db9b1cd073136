"""How far a run is: what a saved state says beside its arrays, and where in a stage to go on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self


@dataclass(frozen=True)
class Best:
    """The highest validation score of a stage so far, and the stage's step that it is from."""

    score: float
    step: int


@dataclass(frozen=True)
class Patience:
    """For early stopping: the value of its metric that counts as the best so far, and the epochs since."""

    value: float
    epochs: int


@dataclass(frozen=True)
class Kept:
    """The model in the folder.

    Attributes:
        stage: that it is from.
        score: on the validation images; None without any.
        weights_sha256: hash of its weights.
        calibration: what that came to on the validation images, where it was fitted, and on the test images.
    """

    stage: str
    score: float | None
    weights_sha256: str
    calibration: dict[str, Any] | None = None


@dataclass(frozen=True)
class ResumePoint:
    """A moment within a stage.

    Attributes:
        step: of the stage.
        loader: the loader's position behind the last batch that was trained on.
        best: None without validation.
        patience: None without early stopping.
        unevaluated: an epoch has ended here, and its validation is still to come.
        meter: sums over the epoch under way.
    """

    step: int
    loader: dict[str, Any]
    best: Best | None = None
    patience: Patience | None = None
    unevaluated: bool = False
    meter: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        best = None if data["best"] is None else Best(**data["best"])
        patience = None if data["patience"] is None else Patience(**data["patience"])
        return cls(**{**data, "best": best, "patience": patience})


@dataclass(frozen=True)
class Snapshot:
    """What is saved within a stage.

    Attributes:
        point: where it is.
        variables: the classifier's, as they are measured.
        state: what else going on from here needs, such as the optimizer's state.
        score: that of validation at this step; None without.
    """

    point: ResumePoint
    variables: Any
    state: dict[str, Any]
    score: float | None


@dataclass
class RunProgress:
    """How far a run is.

    Attributes:
        stage: index of the stage under way, or of the last one that has ended; -1 before the first.
        point: where in the stage; None where it has ended.
        results: test results, in the order measured.
        also: the same of each further set.
        kept: the model that is saved; None before there is one.
        weight_change: by stage, by partition.
        layer_change: the same by layer.
        seconds: by phase.
        log_lines: lines of metrics.jsonl at this moment.
        log_sha256: their digest.
    """

    stage: int = -1
    point: ResumePoint | None = None
    results: list[dict[str, Any]] = field(default_factory=list)
    also: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    kept: Kept | None = None
    weight_change: dict[str, Any] = field(default_factory=dict)
    layer_change: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    log_lines: int = 0
    log_sha256: str | None = None

    @property
    def next_stage(self) -> int:
        """The first stage that has not ended."""
        return self.stage + (self.point is None)

    @property
    def at_beginning(self) -> bool:
        """No stage has begun."""
        return self.stage < 0

    @property
    def names(self) -> list[str]:
        """Of the steps with results, in order."""
        return [result["name"] for result in self.results]

    def with_kept_of(self, later: RunProgress, mark: str) -> Self:
        """The same with the kept model's results from a later moment, under its name with a mark: the steps after this
        moment are run again, under their names."""
        assert self.kept is not None
        kept, marked = self.kept.stage, self.kept.stage + mark

        def of_kept(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [self._marked(result, marked, mark) for result in results if result["name"] == kept]

        also = {name: self.also.get(name, []) + of_kept(results) for name, results in later.also.items()}
        results = self.results + of_kept(later.results)
        return replace(self, results=results, also=also, kept=replace(self.kept, stage=marked))

    def _marked(self, result: dict[str, Any], name: str, mark: str) -> dict[str, Any]:
        paired = result.get("paired")
        if paired is None or paired["before"] in self.names:
            return {**result, "name": name}
        return {**result, "name": name, "paired": {**paired, "before": paired["before"] + mark}}

    def at(self, stage: int, point: ResumePoint | None, log_lines: int, log_sha256: str) -> Self:
        """The same results at another place."""
        return replace(self, stage=stage, point=point, log_lines=log_lines, log_sha256=log_sha256)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the time spent inside to a phase."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What :meth:`to_json` gave."""
        point = None if data["point"] is None else ResumePoint.from_json(data["point"])
        kept = None if data["kept"] is None else Kept(**data["kept"])
        return cls(**{**data, "point": point, "kept": kept})
