import json
import os
import subprocess
import sys

import numpy as np
import pytest

from finetune.data import feature_store
from finetune.data.feature_store import RowSpec, in_memory, open_store
from finetune.errors import CheckpointError

ROWS, BLOCK = 10, 4
SPECS = [RowSpec((3, 2), np.dtype(np.float32)), RowSpec((), np.dtype(np.int32))]
EXPECTED = [np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 3, 2), np.arange(ROWS, dtype=np.int32)]


def compute(start, stop_at=None):
    for first in range(start, ROWS, BLOCK):
        if first == stop_at:
            raise KeyboardInterrupt
        yield [array[first : first + BLOCK] for array in EXPECTED]


def refuse(start):
    raise AssertionError(f"computed from row {start}")


@pytest.fixture
def opened(tmp_path):
    """``opened(compute, **about)``: (the store, what was said)."""

    def open_it(compute=compute, **about):
        said = []
        store = open_store(tmp_path / "store", ROWS, SPECS, compute, about={"key": 1, **about}, say=said.append)
        return store, said

    return open_it


def is_right(store):
    rows = np.array([9, 0, 3])
    whole = all(np.array_equal(array, expected) for array, expected in zip(store.arrays, EXPECTED, strict=True))
    return whole and all(np.array_equal(a, e[rows]) for a, e in zip(store.take(rows), EXPECTED, strict=True))


def test_rows_are_computed_once(opened):
    first, said = opened()
    assert is_right(first)
    assert (first.reused, said) == (0, [])
    second, said = opened(refuse)
    assert is_right(second)
    assert (second.reused, said) == (ROWS, [])
    assert isinstance(second.arrays[0], np.memmap)


def test_a_store_in_memory_gives_the_same():
    assert is_right(in_memory(compute))


def test_an_interrupted_store_goes_on_behind_its_last_block(opened):
    with pytest.raises(KeyboardInterrupt):
        opened(lambda start: compute(start, stop_at=8))
    starts = []
    store, said = opened(lambda start: starts.append(start) or compute(start))
    assert is_right(store)
    assert (starts, store.reused, said) == ([8], 8, [])


def test_a_store_of_something_else_is_named_and_computed_anew(opened):
    opened(weights="others")
    store, [line] = opened()
    assert is_right(store)
    assert store.reused == 0
    assert "the store of something else: its features are computed anew" in line


@pytest.mark.parametrize("row", [0, 5, 9])
def test_a_flipped_bit_is_noticed_and_what_is_from_its_block_on_computed_anew(opened, tmp_path, row):
    opened()
    with (tmp_path / "store" / "0.rows").open("r+b") as file:
        file.seek(row * 24 + 7)
        byte = file.read(1)[0]
        file.seek(row * 24 + 7)
        file.write(bytes([byte ^ 4]))
    store, [line] = opened()
    good = row // BLOCK * BLOCK
    assert is_right(store)
    assert store.reused == good
    assert f"damaged behind row {good}" in line


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("0.rows", b"short"),
        ("1.rows", None),
        ("blocks", b"\xff\x00 nonsense\n"),
        ("store.json", b"{"),
        ("blocks", None),
    ],
)
def test_files_that_are_cut_off_missing_or_foreign_are_computed_anew(opened, tmp_path, name, content):
    opened()
    path = tmp_path / "store" / name
    path.unlink() if content is None else path.write_bytes(content)
    store, _ = opened()
    assert is_right(store)
    assert is_right(opened(refuse)[0])


def test_who_reads_a_store_keeps_it_while_it_is_computed_anew(opened):
    first, _ = opened()
    opened(weights="others")
    assert is_right(first)


def test_a_full_disk_is_told_before_anything_is_computed(opened, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CheckpointError, match="store: features cannot be kept there: No space left on device"):
        opened(refuse)


def test_stores_that_were_not_used_for_longest_make_room(tmp_path, monkeypatch):
    for age, name in enumerate(["new", "old"]):
        open_store(tmp_path / name, ROWS, SPECS, compute, about={})
        os.utime(tmp_path / name / "store.json", (1e9 - age, 1e9 - age))
    free = iter([0, 10**6, 10**6])
    usage = type("Usage", (), {"free": property(lambda self: next(free))})()
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda path: usage)
    open_store(tmp_path / "newest", ROWS, SPECS, compute, about={})
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["new", "newest"]


def test_two_processes_at_once_compute_one_store(tmp_path):
    program = f"""
import sys, time
import numpy as np
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_feature_store import EXPECTED, ROWS, SPECS, compute, is_right
from pathlib import Path
from finetune.data.feature_store import open_store

def slowly(start):
    print("from row", start, flush=True)
    for block in compute(start):
        time.sleep(0.3)
        yield block

store = open_store(Path({str(tmp_path)!r}) / "store", ROWS, SPECS, slowly, about={{}}, say=print)
assert is_right(store)
"""
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("from row 0" in output for output in outputs) == 1


def test_the_lock_of_a_killed_process_does_not_outlive_it(opened, tmp_path):
    program = f"""
import sys, time
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_feature_store import ROWS, SPECS, compute
from pathlib import Path
from finetune.data.feature_store import open_store

def one_block(start):
    yield next(compute(start))
    print("written", flush=True)
    time.sleep(60)

open_store(Path({str(tmp_path)!r}) / "store", ROWS, SPECS, one_block, about={{"key": 1}})
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    process.kill()
    process.wait()
    store, said = opened()
    assert is_right(store)
    assert (store.reused, said) == (BLOCK, [])


def test_what_a_store_is_of_can_be_read(opened, tmp_path):
    opened(images="abc")
    about = json.loads((tmp_path / "store" / "store.json").read_text())
    assert (about["images"], about["rows"]) == ("abc", ROWS)
    assert about["arrays"] == [{"shape": [3, 2], "dtype": "float32"}, {"shape": [], "dtype": "int32"}]
