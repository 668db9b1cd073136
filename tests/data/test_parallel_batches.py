import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from finetune.data import parallel_batches
from finetune.data.parallel_batches import ParallelBatches
from finetune.errors import DataError, RecipeError


def numbers(start, stop):
    """Each example as its number."""
    return {"x": np.arange(start, stop)}


def taken(batches, count=None):
    return [batch["x"].tolist() for batch, _ in zip(batches, range(count or 1000), strict=False)]


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize(("length", "size"), [(10, 5), (11, 5), (14, 5), (3, 5), (1, 1), (40, 20)])
def test_any_number_of_threads_makes_the_same_batches(monkeypatch, threads, length, size):
    monkeypatch.setattr(parallel_batches, "thread_count", lambda: threads)
    expected = [list(range(start, min(start + size, length))) for start in range(0, length, size)]
    assert taken(ParallelBatches(numbers, length, size)) == expected


@pytest.mark.parametrize("threads", [1, 3])
def test_a_position_is_a_number_of_batches(monkeypatch, threads):
    monkeypatch.setattr(parallel_batches, "thread_count", lambda: threads)
    batches = ParallelBatches(numbers, sys.maxsize, 4)
    taken(batches, 3)
    assert batches.get_state() == {"next_index": 4}  # zip has taken one more
    batches.set_state({"next_index": 2})
    assert next(batches)["x"].tolist() == [8, 9, 10, 11]
    batches.close()
    assert next(batches)["x"].tolist() == [12, 13, 14, 15]


def test_lists_of_arrays_are_joined_one_by_one():
    batches = ParallelBatches(lambda a, b: {"kept": [np.arange(a, b), -np.arange(a, b)]}, 6, 6)
    (batch,) = batches
    assert [array.tolist() for array in batch["kept"]] == [[0, 1, 2, 3, 4, 5], [0, -1, -2, -3, -4, -5]]


def test_threads_are_at_most_a_batch_and_a_half_ahead(monkeypatch):
    monkeypatch.setattr(parallel_batches, "thread_count", lambda: 16)
    made = []
    batches = ParallelBatches(lambda a, b: made.append(b - a) or numbers(a, b), sys.maxsize, 16)
    for _ in range(10):
        next(batches)
    batches.close()
    assert sum(made) <= 10 * 16 + 1.5 * 16 + 1


def test_an_error_passes_and_ends_what_runs():
    def fail(start, stop):
        raise DataError(f"image {start} is broken")

    batches = ParallelBatches(fail, 8, 4)
    with pytest.raises(DataError, match="image 0 is broken"):
        next(batches)
    assert not batches._running


def test_more_processes_than_processors_are_refused_before_one_starts():
    before = len(psutil.Process().children())
    with pytest.raises(RecipeError, match="100000 is more than the .* processors"):
        ParallelBatches(numbers, 8, 4, num_workers=100_000)
    assert len(psutil.Process().children()) == before


# Processes: what they make, how they end, and what they take.

SCRIPT = """
import os, sys, time
import numpy as np
from finetune.data.parallel_batches import ParallelBatches

def make(start, stop):
    time.sleep({seconds})
    return {{"x": np.zeros((stop - start, {width}), np.uint8)}}

if __name__ == "__main__":
    batches = ParallelBatches(make, sys.maxsize, {size}, num_workers={workers})
    next(batches)
    print("ready", flush=True)
    {then}
"""


def start(tmp_path, then, *, workers=2, size=8, width=10_000, seconds=0.01):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(then=then, workers=workers, size=size, width=width, seconds=seconds))
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def descendants(process):
    """Worker processes, and the one of Python that removes what they leave."""
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) == 3
    return below


def still_alive(processes, seconds=5):
    """Those that run; a zombie has ended, and waits for the container's first process."""
    end = time.monotonic() + seconds
    while (alive := [each for each in processes if _runs(each)]) and time.monotonic() < end:
        time.sleep(0.05)
    return alive


def _runs(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def shared_memory(processes):
    """The files of shared memory that some processes have open."""
    found = set()
    for process in processes:
        with suppress(psutil.Error):
            found |= {Path(each.path) for each in process.memory_maps() if each.path.startswith("/dev/shm/")}
    return found


GO_ON = "for batch in batches: pass"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_processes_end_when_their_parent_is_killed_and_leave_nothing_in_shared_memory(tmp_path, seconds):
    process = start(tmp_path, GO_ON)
    below = descendants(process)
    time.sleep(seconds)
    shared = shared_memory(below)
    process.kill()
    process.wait()
    assert not still_alive(below)
    assert shared
    assert not [path for path in shared if path.exists()]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.5, 1.0])
def test_processes_end_when_their_parent_is_killed_while_they_start(tmp_path, delay):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(then=GO_ON, workers=2, size=8, width=10, seconds=0))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen([sys.executable, script], **quiet)
    while len(psutil.Process(process.pid).children(recursive=True)) < 2:  # the first of them serves the others
        time.sleep(0.01)
    time.sleep(delay)
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(below) >= 2
    assert not still_alive(below)


@pytest.mark.slow
@pytest.mark.parametrize("then", ["pass", "batches.close()", "sys.exit(3)", "raise ValueError('mine')", "del batches"])
def test_processes_end_with_their_program_without_a_word(tmp_path, then):
    process = start(tmp_path, f"time.sleep(1); {then}")
    below = descendants(process)
    shared = shared_memory(below)
    _, said = process.communicate(timeout=60)
    assert not still_alive(below)
    assert shared
    assert not [path for path in shared if path.exists()]
    assert said == "" or said.endswith("ValueError: mine\n"), said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_is_left_to_their_parent(tmp_path, number):
    then = f"import signal; signal.signal({int(number)}, lambda *_: None); print('set', flush=True); "
    process = start(tmp_path, then + "x = [next(batches) for _ in range(100)]; print('done', flush=True)")
    below = descendants(process)
    assert process.stdout.readline() == "set\n"
    os.killpg(process.pid, number)
    out, said = process.communicate(timeout=60)
    assert (out, said, process.returncode) == ("done\n", "", 0)
    assert not still_alive(below)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.3, 1.0])
def test_a_signal_to_all_processes_while_they_start_is_left_to_their_parent(tmp_path, delay):
    script = tmp_path / "script.py"
    then = "print(len([next(batches) for _ in range(20)]))"
    ignore = "import signal; signal.signal(signal.SIGINT, lambda *_: None)\n"
    script.write_text(ignore + SCRIPT.format(then=then, workers=2, size=8, width=10, seconds=0))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, script], **pipes)
    while len(psutil.Process(process.pid).children(recursive=True)) < 2:
        time.sleep(0.01)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60) == ("ready\n20\n", "")


@pytest.mark.slow
def test_a_process_that_is_killed_is_an_error_that_says_so(tmp_path):
    process = start(tmp_path, GO_ON)
    worker = next(p for p in descendants(process) if "spawn_main" in " ".join(p.cmdline()))
    worker.kill()
    _, said = process.communicate(timeout=60)
    assert "a worker process was ended by SIGKILL: often for want of memory: set fewer workers" in said


@pytest.mark.slow
def test_memory_is_that_of_a_few_batches_for_one_process_and_for_two(tmp_path):
    """Proportional set size of all processes, over the same with tiny batches."""
    size, width = 64, 1_500_000
    batch, grown = size * width, {}
    for workers in (1, 2):
        peaks = []
        for wide in (10, width):
            process = start(tmp_path, GO_ON, workers=workers, size=size, width=wide, seconds=0.2)
            peaks.append(max(_memory(process) for _ in _every(0.1, 40)))
            process.kill()
            process.communicate()
        grown[workers] = (peaks[1] - peaks[0]) / batch
    assert max(grown.values()) < 5, grown
    assert grown[2] < grown[1] + 1.5, grown


def _every(seconds, count):
    for i in range(count):
        yield i
        time.sleep(seconds)


def _memory(process):
    total = 0
    for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:
            continue
    return total
