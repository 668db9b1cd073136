"""Compiled programs are kept between processes, and nothing that happens to them ends a run."""

import os
import subprocess
import sys
import zlib

import pytest
from paths import SMALL

from finetune import compiled
from finetune.files import hash_bytes

WHOLE, OTHER = (zlib.compress(bytes([number]) * 1000) for number in (1, 2))


def put(folder, **programs):
    """Files of programs, each newer than the one before."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for number, (name, data) in enumerate(programs.items()):
        path = folder / f"{name}-cache"
        path.write_bytes(data)
        os.utime(path, (number, number))


def kept(folder):
    compiled._prepare(folder)
    return {path.name.removesuffix("-cache") for path in folder.glob("*-cache")}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "compiled"


def test_a_program_that_was_not_written_to_its_end_is_removed(folder):
    put(folder, whole=WHOLE, cut=WHOLE[:-3], empty=b"", other=b"something else")
    assert kept(folder) == {"whole"}


def test_a_program_that_changed_since_it_was_found_whole_is_removed(folder):
    put(folder, same=WHOLE, changed=WHOLE)
    assert kept(folder) == {"same", "changed"}
    put(folder, changed=OTHER)
    assert kept(folder) == {"same"}


@pytest.mark.parametrize("damaged", [b"", b"{", b"[1]", b"\xff", b'{"same-cache": 5}'])
def test_damaged_digests_are_made_anew(folder, damaged):
    put(folder, same=WHOLE)
    (folder / "digests.json").write_bytes(damaged)
    kept(folder)
    put(folder, same=WHOLE)
    assert kept(folder) == {"same"}
    assert hash_bytes(WHOLE) in (folder / "digests.json").read_text()


def test_programs_beyond_the_room_go_oldest_first(folder, monkeypatch):
    monkeypatch.setattr(compiled, "MAX_BYTES", 2 * len(WHOLE))
    put(folder, oldest=WHOLE, older=WHOLE, newest=WHOLE)
    assert kept(folder) == {"older", "newest"}


def test_a_folder_that_others_can_write_is_not_used(folder):
    put(folder, theirs=WHOLE)
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="others can write it"):
        compiled._prepare(folder)


COMPILE = """
import warnings
warnings.simplefilter("always")
from finetune.compiled import keep_compiled_programs
keep_compiled_programs()
import jax
from jax import monitoring
events = []
monitoring.register_event_listener(lambda event, **_: events.append(event.rpartition("/")[2]))
assert int(jax.jit(lambda: jax.numpy.arange(4).sum())()) == 6
print("read" if "cache_hits" in events else "written" if "cache_misses" in events else "neither")
"""


def compile_in_a_process(cache, **environment):
    """What it did with its program. It says nothing else."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = {**others, "FINETUNE_CACHE": str(cache), "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def programs_in(cache):
    return sorted(cache.glob("compiled/*/*-cache"))


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    assert compile_in_a_process(tmp_path) == "written"
    [program] = programs_in(tmp_path)
    assert compile_in_a_process(tmp_path) == "read"
    assert programs_in(tmp_path) == [program]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_program_is_compiled_again(tmp_path, damage):
    compile_in_a_process(tmp_path)
    assert compile_in_a_process(tmp_path) == "read"
    [program] = programs_in(tmp_path)
    data = bytearray(program.read_bytes())
    data[len(data) // 2] ^= 4
    program.write_bytes({"cut": data[:-9], "flipped": data, "emptied": b""}[damage])
    assert compile_in_a_process(tmp_path) == "written"
    assert compile_in_a_process(tmp_path) == "read"


@pytest.mark.slow
def test_without_a_folder_to_write_programs_are_compiled_all_the_same(tmp_path):
    (tmp_path / "compiled").write_text("in the way")
    assert compile_in_a_process(tmp_path) == "neither"


@pytest.mark.slow
def test_a_program_that_can_be_neither_read_nor_written_is_compiled(tmp_path):
    compile_in_a_process(tmp_path)
    [program] = programs_in(tmp_path)
    program.unlink()
    program.mkdir()
    compile_in_a_process(tmp_path)
    assert programs_in(tmp_path) == [program]


@pytest.mark.slow
def test_what_the_user_set_holds(tmp_path):
    assert compile_in_a_process(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == "neither"
    own = tmp_path / "own"
    least = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    assert compile_in_a_process(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own), **least) == "written"
    assert compile_in_a_process(tmp_path, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="60") == "neither"
    assert not programs_in(tmp_path)


@pytest.mark.slow
def test_processes_that_start_together_share_the_programs(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        together = list(pool.map(lambda _: compile_in_a_process(tmp_path), range(3)))
    assert set(together) <= {"written", "read"}
    assert compile_in_a_process(tmp_path) == "read"


@pytest.mark.slow
def test_a_run_compiles_few_programs_and_the_next_one_none(tmp_path):
    others = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = {**others, "FINETUNE_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu", "JAX_LOG_COMPILES": "1"}
    command = [sys.executable, "-m", "finetune.cli", "run", SMALL, "--overwrite", "--output", tmp_path / "run"]

    def run():
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stderr.count("Finished XLA compilation"), set(programs_in(tmp_path / "cache"))

    count, programs = run()
    assert count < 60  # one for each operation on each shape of parameters would be more than a hundred
    for store in (tmp_path / "cache" / "features").glob("*/store.json"):
        store.unlink()  # so that the second run computes what the first did
    assert run()[1] == programs
