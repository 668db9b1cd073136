"""Flipped bits and cut files in copies of a run's folder, and what becomes of them.

In this process, as two hundred would take an hour by themselves; the run's data and model are loaded once, and no
report is made. ``report.html`` and the figures are left out: nothing reads them but people.

A flip is ``refused`` by an error; or a line names what is damaged, and the run ends with the same bits (``recovered``)
or without what was lost (``reduced``); or it is ``harmless``: all that the folder says is equal to what it said before.
What is none of these is ``silent``, and an exception that is not ours is ``crashed``.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.faults.runs import LAST_STAGE, Workplace, differing, outcome, predictions

VERDICTS = ("refused", "recovered", "reduced", "harmless", "crashed", "silent")
_PICTURES = ("figures", "report.html")
_CUT = 0.25  # share of truncations
_OF_FINISHED = 0.35  # share of flips in the finished run, whose state nothing reads any more


@dataclass(frozen=True)
class Flip:
    """A file below a run's folder and what happens to it: a bit of a byte, or the number of bytes that stay."""

    file: str
    offset: int
    bit: int | None

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        data = bytearray(path.read_bytes())
        if self.bit is None:
            del data[self.offset :]
        else:
            data[self.offset] ^= 1 << self.bit
        path.unlink()  # a copy may be a link
        path.write_bytes(data)

    @property
    def part(self) -> str:
        """What is damaged, as a message would name it."""
        parts = Path(self.file).parts
        return "/".join(parts[:2]) if parts[0] == "state" else parts[0]

    def __str__(self) -> str:
        return f"{self.file}: " + (
            f"cut to {self.offset} bytes" if self.bit is None else f"bit {self.bit} of byte {self.offset}"
        )


def measure(place: Workplace, flips: int, seed: int = 0) -> dict[str, Any]:
    """Trials, in copies of a run that is there."""
    before = {"interrupted": place.interrupted, "finished": place.finished}
    rng, began = random.Random(seed), time.monotonic()
    with _quick(place):
        judges = {name: Judge(place, folder) for name, folder in before.items()}
        trials = []
        for _ in range(flips):
            name = "finished" if rng.random() < _OF_FINISHED else "interrupted"
            flip = draw(before[name], rng, with_state=name == "interrupted")
            verdict, said = judges[name](flip)
            trials.append({"run": name, "flip": str(flip), "part": flip.part, "verdict": verdict, "said": said})
            if verdict in ("silent", "crashed"):
                print(f"{name}: {flip}: {verdict}: {said}", flush=True)
    verdicts = Counter(trial["verdict"] for trial in trials)
    parts: dict[str, Counter[str]] = {}
    for trial in trials:
        parts.setdefault(trial["part"].partition("/")[0], Counter())[trial["verdict"]] += 1
    return {
        "trials": len(trials),
        "verdicts": {name: verdicts[name] for name in VERDICTS if verdicts[name]},
        "parts": {name: dict(counts) for name, counts in sorted(parts.items())},
        "silent": verdicts["silent"] + verdicts["crashed"],
        "seconds": round(time.monotonic() - began, 1),
        "failures": [trial for trial in trials if trial["verdict"] in ("silent", "crashed")],
        "examples": _examples(trials),
    }


def _examples(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of each verdict on each part."""
    return list({(trial["part"].partition("/")[0], trial["verdict"]): trial for trial in trials}.values())


def draw(folder: Path, rng: random.Random, *, with_state: bool) -> Flip:
    """A part, then a file of it, then a place in the file, all at random."""
    parts: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        top = path.relative_to(folder).parts[0]
        if path.is_file() and path.stat().st_size and top not in _PICTURES and (with_state or top != "state"):
            parts.setdefault(top, []).append(path)
    weights = [3 if name in ("state", "model") else 1 for name in parts]
    path = rng.choice(parts[rng.choices(list(parts), weights)[0]])
    place = rng.randrange(path.stat().st_size)
    return Flip(str(path.relative_to(folder)), place, None if rng.random() < _CUT else rng.randrange(8))


class Judge:
    """Says what becomes of a flip in a run's folder.

    Attributes:
        expected: what the folder says, once it is resumed, without one.
    """

    def __init__(self, place: Workplace, folder: Path) -> None:
        self._place, self._folder = place, folder
        self._copy = place.folder / "flipped" / "run"
        self._finished = (folder / "summary.json").is_file()
        self.expected, _ = self._resume(lambda folder: None)

    def __call__(self, flip: Flip) -> tuple[str, str]:
        """One of the verdicts, and what was said."""
        from finetune.errors import FinetuneError, Interrupted

        try:
            found, said = self._resume(flip.apply)
        except Interrupted:
            raise  # someone stops these trials
        except FinetuneError as error:
            return "refused", str(error)
        except Exception:
            return "crashed", traceback.format_exc()[-1500:]
        parts = differing(found, self.expected)
        named = [line for line in said.splitlines() if f"{self._copy.name}/{flip.part}" in line]
        if parts:
            return ("reduced", named[0]) if named else ("silent", f"other {', '.join(parts)}")
        return ("recovered", named[0]) if named else ("harmless", "")

    def _resume(self, damage: Callable[[Path], None]) -> tuple[dict[str, Any], str]:
        """What the folder says in the end, and what was said on the way."""
        import finetune

        shutil.rmtree(self._copy.parent, ignore_errors=True)
        shutil.copytree(self._folder, self._copy)
        damage(self._copy)
        with redirect_stderr(io.StringIO()) as said:
            finetune.run(finetune.load_recipe(self._place.recipe), output=self._copy, resume=True)
        return facts(self._copy, finished=self._finished), said.getvalue()


def facts(folder: Path, *, finished: bool) -> dict[str, Any]:
    """The outcome, and what else can be read of the folder of a run; of one that was finished before, times too.

    Raises:
        FinetuneError: a file is damaged, and it is seen.
    """
    from finetune.folder.run_folder import RunFolder

    run = RunFolder(folder)
    log = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    return {
        **outcome(folder),
        "log": log if finished else [line for line in log if json.loads(line).get("stage") != LAST_STAGE],
        "whole summary": run.summary() if finished else None,
        "recipe": run.recipe().model_dump(),
        "about": {key: value for key, value in run.about().items() if key != "history"},  # it has times
        "predictions": predictions(run),
    }


@contextmanager
def _quick(place: Workplace) -> Iterator[None]:
    """Without what is not under test here, and with the caches of the other runs."""
    from finetune.run import run, session

    prepared: dict[str, Any] = {}
    prepare = run.prepare_run

    def once(recipe: Any, **options: Any) -> Any:
        key = json.dumps(recipe.model_dump(), sort_keys=True, default=str)
        if key not in prepared:
            prepared[key] = prepare(recipe, **options)
        return prepared[key]

    with (
        patch.dict(os.environ, place.variables()),
        patch.object(run, "prepare_run", once),
        patch.object(run, "write_report", _nothing),
        patch.object(session, "write_report", _nothing),
    ):
        yield


def _nothing(*arguments: Any) -> None:
    pass
