"""SIGTERM and SIGINT when a phase of a run begins, and shortly after that, then ``--resume``."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.faults.runs import Workplace, differing, outcome

# phase: the function whose call begins it, and which call; the programs are compiled anew where that is the phase
PHASES = {
    "loading weights": ("finetune.run.setup:open_backbone", 1),
    "loading images": ("finetune.run.setup:load_splits", 1),
    "checking images": ("finetune.data.splits:scan_images", 1),
    "extracting features": ("finetune.run.features:open_store", 1),
    "zero-shot": ("finetune.run.stages:text_classifier", 1),
    "fitting the probe": ("finetune.run.stages:fit_head", 1),
    "compiling": ("finetune.training.stage_trainer:StageTrainer.init_state", 1),
    "training": ("finetune.training.loop:Prefetcher.take", 6),
    "evaluating": ("finetune.run.train_stage:TrainStageRun._validate", 2),
    "testing": ("finetune.run.session:RunSession._measure_test", 3),
    "saving a state": ("finetune.run.session:RunSession.save_within", 2),
    "writing a state": ("finetune.checkpoint:RunCheckpoints._write", 3),
    "saving the model": ("finetune.run.session:save_bundle", 2),
    "interpolating": ("finetune.run.interpolation:_Mixtures.measure", 5),
    "reporting": ("finetune.run.session:write_report", 1),
}
COLD = ("compiling", "extracting features", "checking images")  # without what the caches have
_DELAYS = (0.0, 0.2)


def measure(
    place: Workplace, count: int | None = None, limit: float = 10, phases: Sequence[str] = tuple(PHASES)
) -> dict[str, Any]:
    """Trials over all phases, with signals and delays in turn.

    Args:
        count: of trials; by default two of each phase.
        limit: seconds within which a process has to end.
    """
    names, expected = list(phases), outcome(place.finished)
    count = 2 * len(names) if count is None else count
    trials = []
    for number in range(count):
        phase = names[number * len(names) // count % len(names)] if count < len(names) else names[number % len(names)]
        turn = number // len(names) + number  # each phase has another signal and delay in the second round
        trial = _trial(place, expected, phase, ("SIGTERM", "SIGINT")[turn % 2], _DELAYS[turn // 2 % 2])
        trial["good"] = not trial["problems"] and trial["seconds"] <= limit
        print(f"{trial['signal']} at {phase} + {trial['delay']} s: out after {trial['seconds']:.1f} s", end="")
        print(
            f", load {os.getloadavg()[0]:.1f}: {', '.join(trial['problems']) or 'resumed to the same bits'}", flush=True
        )
        trials.append(trial)
    twice = _second_signal(place)
    print(f"a second signal: out after {twice['seconds']:.1f} s: {twice['problem'] or 'at once'}", flush=True)
    return {
        "trials": len(trials),
        "good": sum(trial["good"] for trial in trials),
        "longest_seconds": max(trial["seconds"] for trial in trials),
        "load": os.getloadavg()[0],
        "second_signal": twice,
        "failures": [trial for trial in trials if not trial["good"]],
    }


def _trial(place: Workplace, expected: dict[str, Any], phase: str, name: str, delay: float) -> dict[str, Any]:
    where = place
    if phase in COLD:
        where = replace(place, environment={"FINETUNE_CACHE": str(_fresh(place, "cold"))})
        if phase == "compiling":
            where = replace(place, environment={"JAX_ENABLE_COMPILATION_CACHE": "0"})
    folder = _fresh(place, "signalled") / "run"
    on, call = PHASES[phase]
    ended = where.run(folder, strike={"on": on, "call": call, "delay": delay, "signals": [name]})
    problems = []
    finished = ended.code == 0 and (folder / "summary.json").is_file()  # the signal came when all was done
    if ended.code != 128 + signal.Signals[name] and not finished:
        problems.append(f"exit code {ended.code}")
    if "Traceback" in ended.text:
        problems.append("a traceback")
    if not finished and not any(word in ended.text for word in ("; saved", "is saved", "nothing")):
        problems.append("does not say what is saved")
    resumed = place.run(folder, "--resume")
    if resumed.code:
        problems.append(f"cannot resume: exit code {resumed.code}: {resumed.last_line}")
    elif parts := differing(outcome(folder), expected):
        problems.append(f"other {', '.join(parts)}")
    seconds = ended.seconds if ended.since_struck is None else ended.since_struck
    if ended.since_struck is None:
        problems.append("was never struck")
    said = [line for line in ended.text.splitlines() if "saved" in line or "nothing" in line]
    return {"phase": phase, "signal": name, "delay": delay, "seconds": seconds, "problems": problems, "said": said[-1:]}


def _second_signal(place: Workplace) -> dict[str, Any]:
    """Two signals, 0.3 s apart, while programs are compiled, which takes longer than that."""
    cold = replace(place, environment={"JAX_ENABLE_COMPILATION_CACHE": "0"})
    on, call = PHASES["compiling"]
    strike = {"on": on, "call": call, "delay": 0.0, "signals": ["SIGTERM", "SIGTERM"]}
    ended = cold.run(_fresh(place, "signalled") / "run", strike=strike)
    code = 128 + signal.SIGTERM
    problem = None if ended.code in (code, -signal.SIGTERM) else f"exit code {ended.code}"
    return {"seconds": ended.since_struck or ended.seconds, "problem": problem}


def _fresh(place: Workplace, name: str) -> Any:
    folder = place.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
