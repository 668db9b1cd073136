"""Two processes that start at once on one folder."""

from __future__ import annotations

import random
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from benchmarks.faults.runs import Workplace, differing, finish, leftovers, outcome

# what the two do, and what the folder is before: nothing, a run that was interrupted, or a finished one
COMBINATIONS = (
    ("run", "run", None),
    ("run", "resume", None),
    ("run", "overwrite", None),
    ("resume", "resume", "interrupted"),
    ("resume", "overwrite", "interrupted"),
    ("overwrite", "overwrite", "finished"),
)
_OPTIONS = {"run": (), "resume": ("--resume",), "overwrite": ("--overwrite",)}
_APART = 0.5  # seconds at most


def measure(place: Workplace, pairs: int, seed: int = 0) -> dict[str, Any]:
    """Trials over all combinations."""
    before, expected = {"interrupted": place.interrupted, "finished": place.finished}, outcome(place.finished)
    rng, trials = random.Random(seed), []
    for number in range(pairs):
        first, second, state = COMBINATIONS[number % len(COMBINATIONS)]
        if rng.random() < 0.5:
            first, second = second, first
        trial = _trial(place, expected, (first, second), before[state] if state else None, rng.uniform(0, _APART))
        print(f"pair {number + 1}: {first} and {second}: {', '.join(trial['problems']) or 'one wins'}", flush=True)
        trials.append(trial)
    return {
        "trials": len(trials),
        "good": sum(not trial["problems"] for trial in trials),
        "failures": [trial for trial in trials if trial["problems"]],
    }


def _trial(
    place: Workplace, expected: dict[str, Any], verbs: tuple[str, str], before: Path | None, apart: float
) -> dict[str, Any]:
    folder = place.folder / "pair" / "run"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.mkdir()
    if before is not None:
        shutil.copytree(before, folder)
    began = time.monotonic()
    first = place.start(folder, *_OPTIONS[verbs[0]])
    time.sleep(apart)
    second = place.start(folder, *_OPTIONS[verbs[1]])
    pids = (first.pid, second.pid)
    # the one that is refused ends soon, and its pipe holds what little it says
    ended = [finish(first, began), finish(second, began)]
    problems, codes = [], [each.code for each in ended]
    if sorted(codes) != [0, 2]:
        problems.append(f"exit codes {codes[0]} and {codes[1]}")
        problems += [each.last_line for each in ended if each.code not in (0, 2)]
    else:
        winner = codes.index(0)
        message = ended[1 - winner].text
        missing = [word for word in (str(pids[winner]), socket.gethostname()) if word not in message]
        if missing:
            problems.append(f"the refusal does not name {' and '.join(missing)}: {ended[1 - winner].last_line}")
    problems += _whole(folder, expected)
    return {"verbs": verbs, "apart": round(apart, 3), "codes": codes, "problems": problems}


def _whole(folder: Path, expected: dict[str, Any]) -> list[str]:
    """What is wrong with the folder afterwards."""
    from finetune.errors import FinetuneError

    try:
        parts = differing(outcome(folder), expected)
    except (FinetuneError, OSError) as error:
        return [f"not a whole run: {error}"]
    left = leftovers(folder)
    return [f"other {', '.join(parts)}"] * bool(parts) + [f"left {', '.join(left)}"] * bool(left)
