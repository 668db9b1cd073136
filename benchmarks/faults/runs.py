"""Runs in processes of their own, and what has to be equal of two of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAST_STAGE = "finetune"
_DATA = {"source": "digits", "fraction": 0.1, "validation": 0.2, "test": 0.1}
_PROBE = {"name": "probe", "type": "linear_probe", "l2": 1.0}
_TRAIN = {"name": LAST_STAGE, "epochs": 3, "batch_size": 32}
# the quickstart's, cut down to ten seconds: a zero-shot head, a probe, training, validation and interpolation
CLIP: dict[str, Any] = {
    "seed": 3,
    "backbone": {"source": "builtin:tiny-clip"},
    "head": {"init": "zero_shot", "templates": ["the digit {}"], "num_classes": 10},
    "data": _DATA,
    "stages": [
        _PROBE,
        {
            **_TRAIN,
            "partitions": [
                {"match": "head/.*", "learning_rate": 1e-3, "schedule": {"name": "cosine", "warmup": 0.1}},
                {"match": "backbone/encoder/layers/3/.*", "learning_rate": 1e-3},
                {"match": ".*", "frozen": True},
            ],
        },
    ],
}
# a network that is traced in no time, with statistics, whose best epoch is not its last
LENET: dict[str, Any] = {
    "seed": 3,
    "backbone": {
        "module": "finetune.models.lenet:LeNet",
        "kwargs": {"num_classes": 10, "norm": True},
        "image": {"size": 28, "channels": 1},
    },
    "head": {"init": "zeros", "num_classes": 10},
    "data": {**_DATA, "fraction": 0.4},
    "stages": [_PROBE, {**_TRAIN, "partitions": [{"match": ".*", "learning_rate": 0.01}]}],
}
_ROOT = Path(__file__).parents[2]
LIMIT = 300.0  # seconds of any process
_TIMES = ("seconds", "seconds_left", "images_per_second", "sha256", "log_sha256")  # digests are over times too
_STRIKER = "benchmarks.faults.striker"


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; negative where a signal ended it.
        text: all that it printed.
        seconds: from its start, and from the moment it was struck (None where it was not).
    """

    code: int
    text: str
    seconds: float
    since_struck: float | None = None

    @property
    def last_line(self) -> str:
        lines = self.text.strip().splitlines()
        return lines[-1] if lines else ""


@dataclass(frozen=True)
class Workplace:
    """A folder for the trials, with the recipe and warm caches.

    Attributes:
        folder: the runs are below it.
        settings: of the recipe.
        environment: further variables of every process.
    """

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=lambda: CLIP)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def finished(self) -> Path:
        """A run that nothing broke."""
        return self.folder / "finished"

    @property
    def interrupted(self) -> Path:
        """A run that was killed when two states of its last stage were there."""
        return self.folder / "interrupted"

    def prepare(self) -> Ended:
        """Makes these two, and gives how the first ended, by a process that counted its operations.

        The run before it fills the caches, so that it takes as long as the ones to come.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(json.dumps(self.settings), encoding="utf-8")
        for folder in (self.finished, self.interrupted, self.folder / "first"):
            shutil.rmtree(folder, ignore_errors=True)
        first = self.run(self.folder / "first")
        whole = self.run(self.finished, strike={"root": str(self.finished), "at": 0})
        for ended in (first, whole):
            if ended.code:
                raise RuntimeError(f"the run fails with nothing to break it: {ended.text}")
        self._interrupt()
        return whole

    def _interrupt(self) -> None:
        began = time.monotonic()
        process = self.start(self.interrupted)
        while process.poll() is None and len(_states(self.interrupted)) < 2:
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        finish(process, began)

    def variables(self) -> dict[str, str]:
        """Of every process: programs are compiled once for all of them, and images are known."""
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        caches = {
            "PYTHONPATH": path,
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "FINETUNE_CACHE": str(self.folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        return {**caches, **self.environment}

    def start(self, output: Path, *options: str, strike: Mapping[str, Any] | None = None) -> subprocess.Popen[str]:
        """``finetune run`` of the recipe into a folder; ``strike`` is what :mod:`benchmarks.faults.striker` takes."""
        program = ["finetune.cli"] if strike is None else [_STRIKER, json.dumps(strike)]
        command = [sys.executable, "-m", *program, "run", str(self.recipe), "--output", str(output), *options]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, **self.variables()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def run(
        self, output: Path, *options: str, strike: Mapping[str, Any] | None = None, kill_after: float | None = None
    ) -> Ended:
        """The same until it ends, or until it is killed after that many seconds."""
        began = time.monotonic()
        return finish(self.start(output, *options, strike=strike), began, kill_after)


def _states(run: Path) -> list[str]:
    """Those of the stage that trains: the probe before it counts as one step."""
    return [path.name for path in run.glob("state/*") if path.name.isdigit() and int(path.name) > 1]


def finish(process: subprocess.Popen[str], began: float, kill_after: float | None = None) -> Ended:
    """Waits for a process that began at that moment of the monotonic clock."""
    try:
        text, _ = process.communicate(timeout=LIMIT if kill_after is None else kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        if kill_after is None:
            text += f"\nstill there after {LIMIT:.0f} s"
    ended = time.monotonic()
    struck = [float(line.split()[1]) for line in text.splitlines() if line.startswith("struck: ")]
    return Ended(process.returncode, text, ended - began, ended - struck[0] if struck else None)


def outcome(folder: Path) -> dict[str, Any]:
    """All that two runs of one recipe have in common, whatever happened on the way: everything but times.

    Raises:
        FinetuneError: a file is damaged or missing.
    """
    from finetune.export.bundle import load_bundle
    from finetune.folder.run_folder import RunFolder
    from finetune.trees import hash_tree

    run = RunFolder(folder)
    bundle = load_bundle(run.model)  # which checks its digests
    records = [record for record in run.records() if record.get("split") in ("validation", "test")]
    return {
        "summary": without_times(run.summary()),
        "weights": hash_tree(bundle.variables),
        "model": json.loads((run.model / "model.json").read_text(encoding="utf-8")),
        "predictions": predictions(run),
        "metrics": without_times(records),
        "start": hash_tree(run.load_start()),
    }


def predictions(run: Any) -> dict[str, Any]:
    """What ``predictions.parquet`` has of each step of a finished run, as digests.

    Raises:
        CheckpointError: it lacks a step, or one is damaged, which the toolkit does not take for predictions.
    """
    from finetune.errors import CheckpointError
    from finetune.run.predictions import read_predictions
    from finetune.trees import hash_array

    said = {}
    for result in (run.summary() or {}).get("results", ()):
        step = read_predictions(run.predictions, result["name"])
        if step is None:
            raise CheckpointError(f"{run.predictions}: has nothing of {result['name']}, or it is damaged")
        said[result["name"]] = [step.names, hash_array(step.labels), hash_array(step.logits)]
    return said


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The parts in which two outcomes differ."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def without_times(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: without_times(value) for key, value in data.items() if key not in _TIMES}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def leftovers(folder: Path) -> list[str]:
    """What a finished run should not have left in its folder, or beside it."""
    inside = [path for path in folder.rglob("*") if path.name.endswith((".new", ".old")) or "-tmp-" in path.name]
    paths = [*inside, *folder.parent.glob(f"{folder.name}.*")]
    return sorted(str(path.relative_to(folder.parent)) for path in paths)
