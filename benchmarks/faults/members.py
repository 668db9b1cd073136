"""SIGKILL to one of two processes of a run at random times; the other ends by itself, and any number resumes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.faults.runs import Ended, Workplace, finish

TOLERANCE = 1e-6  # of losses, in nats: other sums come in another order
_STARTED = 3.0  # seconds until two processes have met
_DEVICES = 4  # of all processes
_AGAIN = (1, 2, 4)  # processes that resume


def measure(folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    rng = random.Random(seed)
    place = Workplace(folder)
    place.prepare()
    shutil.rmtree(folder / "whole", ignore_errors=True)
    whole = run_members(place, folder / "whole", 2)
    if any(ended.code for ended in whole):
        raise RuntimeError(f"the run fails with nothing to break it: {whole}")
    expected, seconds = _results(folder / "whole"), max(ended.seconds for ended in whole)
    trials = []
    for number in range(kills):
        trial = _trial(place, expected, rng, seconds)
        print(f"member {number + 1}: {trial}", flush=True)
        trials.append(trial)
    return {
        "trials": len(trials),
        "same": sum(trial["difference"] is not None and trial["difference"] <= TOLERANCE for trial in trials),
        "ended_by_themselves": sum(trial["other"]["code"] > 0 for trial in trials),
        "longest_seconds": max(trial["other"]["seconds"] for trial in trials),
        "largest_difference": max(trial["difference"] or 0.0 for trial in trials),
        "of": trials,
    }


def _trial(place: Workplace, expected: dict[str, float], rng: random.Random, seconds: float) -> dict[str, Any]:
    folder = place.folder / "killed" / "run"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.mkdir()
    struck, after, again = rng.randrange(2), rng.uniform(_STARTED, seconds), rng.choice(_AGAIN)
    ended = run_members(place, folder, 2, kill=(struck, after))
    other, killed = ended[1 - struck], ended[struck]
    trial: dict[str, Any] = {
        "killed": struck,
        "after": round(after, 2),
        "was_killed": killed.code == -signal.SIGKILL,
        "other": {
            "code": other.code,
            "seconds": round(max(0.0, other.seconds - after), 2),
            "says": other.last_line,
            "traceback": "Traceback" in other.text,
        },
        "again": again,
        "difference": None,
    }
    resumed = run_members(place, folder, again, "--resume")
    if failed := [ended for ended in resumed if ended.code]:
        return {**trial, "error": failed[0].text[-2000:]}
    found = _results(folder)
    return {**trial, "difference": max(abs(found[name] - loss) for name, loss in expected.items())}


def run_members(
    place: Workplace, output: Path, count: int, *options: str, kill: tuple[int, float] | None = None
) -> list[Ended]:
    """``finetune run`` in so many processes, which have equally many devices.

    Args:
        kill: one of them, and after how many seconds.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    devices = f"--xla_force_host_platform_device_count={_DEVICES // count}"
    place = replace(place, environment={"XLA_FLAGS": devices})
    began = time.monotonic()
    joined = ["--coordinator", address, "--num-processes", str(count), "--process-id"] if count > 1 else []
    processes = [place.start(output, *options, *joined, *([str(i)] if joined else [])) for i in range(count)]
    ended: list[Any] = [None] * count

    def wait(index: int) -> None:
        ended[index] = finish(processes[index], began)

    threads = [threading.Thread(target=wait, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    if kill is not None:
        time.sleep(max(0.0, began + kill[1] - time.monotonic()))
        if processes[kill[0]].poll() is None:
            os.killpg(processes[kill[0]].pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    return ended


def _results(folder: Path) -> dict[str, float]:
    """Losses on the test images, by step."""
    from finetune.folder.run_folder import RunFolder

    summary = RunFolder(folder).summary()
    assert summary is not None
    return {result["name"]: result["loss"] for result in summary["results"]}
