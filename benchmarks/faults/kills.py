"""SIGKILL at random operations on files and at random times, then ``--resume``, until the run ends."""

from __future__ import annotations

import random
import shutil
import signal
from typing import Any

from benchmarks.faults.runs import Ended, Workplace, differing, leftovers, outcome
from finetune.errors import FinetuneError

_STARTED = 1.5  # seconds until a process has imported what it needs
_AGAIN = 0.5  # chance that a resumed run is killed too
_MOST = 3  # kills of one run


def measure(place: Workplace, whole: Ended, kills: int, seed: int = 0) -> dict[str, Any]:
    """Trials, half of them at operations.

    Args:
        whole: the run that nothing broke, by a process that counted its operations.
    """
    rng, expected = random.Random(seed), outcome(place.finished)
    operations = int(whole.last_line.removeprefix("operations: "))
    trials = []
    for number in range(kills):
        trial = _trial(place, expected, rng, operations if number % 2 else None, whole.seconds)
        print(f"kill {number + 1}: {trial['how']}: {'the same bits' if trial['same'] else trial}", flush=True)
        trials.append(trial)
    return {
        "kills": sum(trial["killed"] for trial in trials),
        "trials": len(trials),
        "same": sum(trial["same"] for trial in trials),
        "cannot_resume": sum(trial["error"] is not None for trial in trials),
        "leftovers": sum(bool(trial["left"]) for trial in trials),
        "operations": operations,
        "failures": [trial for trial in trials if not trial["same"] or trial["left"]],
    }


def _trial(
    place: Workplace, expected: dict[str, Any], rng: random.Random, operations: int | None, seconds: float
) -> dict[str, Any]:
    folder = place.folder / "killed" / "run"
    how: list[str] = []
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.mkdir()
    killed = 0
    while not how or (killed < _MOST and rng.random() < _AGAIN):
        options = ("--resume",) if how else ()
        if operations is None:
            after = rng.uniform(_STARTED, seconds)
            how.append(f"after {after:.2f} s")
            ended = place.run(folder, *options, kill_after=after)
        else:
            at = rng.randint(1, operations)
            how.append(f"at operation {at}")
            ended = place.run(folder, *options, strike={"root": str(folder), "at": at})
        killed += ended.code == -signal.SIGKILL
        if ended.code != -signal.SIGKILL:  # it has ended before
            break
    if ended.code == -signal.SIGKILL:
        ended = place.run(folder, "--resume")
    trial: dict[str, Any] = {"how": ", then ".join(how), "killed": killed, "same": False, "error": None, "left": []}
    if ended.code:
        return {**trial, "error": f"exit code {ended.code}: {ended.text[-2000:]}"}
    try:
        parts = differing(outcome(folder), expected)
    except FinetuneError as error:
        return {**trial, "error": f"not a whole run: {error}"}
    return {**trial, "same": not parts, "differs": parts, "left": leftovers(folder)}
