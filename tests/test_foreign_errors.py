import errno
import json
import os
import subprocess
import sys

import pytest
from command_line import FINETUNE, clean_failure, finetune

from finetune.errors import DataError, MachineError
from finetune.foreign_errors import advice_for, foreign_errors_translated, translate
from finetune.recipe import source


def system_error(number, name="a.bin"):
    return OSError(number, os.strerror(number), name)


ADVICE = [
    (errno.ENOSPC, "make room"),
    (errno.EDQUOT, "make room"),
    (errno.EACCES, "allow this user"),
    (errno.EROFS, "can only be read"),
    (errno.EMFILE, "ulimit -n"),
    (errno.ENAMETOOLONG, "shorter name"),
    (errno.EIO, "the disk fails"),
    (errno.EFBIG, "ulimit -f"),
]


@pytest.mark.parametrize(("number", "advice"), ADVICE, ids=lambda value: errno.errorcode.get(value, ""))
def test_each_error_of_the_system_has_its_own_advice(number, advice):
    assert advice in advice_for(system_error(number))
    assert advice in str(translate(system_error(number)))
    assert "a.bin: " in str(translate(system_error(number)))


def test_room_is_asked_for_only_where_a_disk_takes_no_more():
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    assert {number for number in errno.errorcode if "make room" in advice_for(system_error(number))} == full
    assert "make room" not in advice_for(ValueError("something else"))


def test_the_systems_error_is_seen_through_the_text_and_the_cause_of_a_librarys():
    assert (
        advice_for(ValueError('RESOURCE_EXHAUSTED: writing "a": [OS error 28: No space left on device]')) == "make room"
    )
    wrapped = RuntimeError("cannot save")
    wrapped.__cause__ = system_error(errno.EROFS)
    assert "can only be read" in advice_for(wrapped)


class JaxRuntimeError(RuntimeError):
    """As JAX calls its own."""


@pytest.mark.parametrize(
    "error",
    [MemoryError(), JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")],
    ids=["host", "device"],
)
def test_out_of_memory_says_what_needs_less(error):
    for word in ("out of memory", "batch_size", "grad_accum_steps", "remat", "compute_dtype: bfloat16"):
        assert word in str(translate(error))


def test_input_that_is_nested_too_deeply_is_no_bug_of_ours():
    with pytest.raises(MachineError, match="nested too deeply for json"), foreign_errors_translated():
        json.loads("[" * 100_000)


@pytest.mark.parametrize(
    "bug", [AssertionError("x"), RuntimeError("x"), KeyError("x"), ValueError("Input/output error")]
)
def test_a_mistake_of_the_program_stays_what_it_is(bug):
    with pytest.raises(type(bug)) as raised, foreign_errors_translated():
        raise bug
    assert raised.value is bug


def test_our_own_errors_pass_as_they_are():
    with pytest.raises(DataError), foreign_errors_translated():
        raise DataError("x")


def test_a_mistake_of_the_program_shows_its_traceback_on_the_command_line(monkeypatch):
    def mistaken(path):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(source, "purpose", mistaken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        finetune("ls")


def test_an_interrupted_verb_ends_with_130_and_no_traceback(monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(source, "purpose", interrupted)
    result = finetune("ls")
    assert (result.returncode, result.stderr) == (130, "")


def in_environment(*arguments, **variables):
    return subprocess.run([*FINETUNE, *arguments], capture_output=True, text=True, env={**os.environ, **variables})


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["JAX_PLATFORMS=cuda", "JAX_PLATFORMS=nonsense", "JAX_PLATFORM_NAME=nonsense"])
def test_a_missing_backend_is_one_message_that_says_what_is_there(tmp_path, variable):
    import jax

    name, value = variable.split("=")
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("has a GPU")
    result = in_environment("run", "quickstart", "--output", str(tmp_path / "run"), **{name: value})
    clean_failure(result, f"({variable})", "installed here: cpu", "JAX_PLATFORMS=cpu")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_out_of_memory_on_the_device_is_one_message():
    code = (
        "import sys; sys.argv = ['finetune', 'ls']\n"
        "from finetune.recipe import source\nfrom finetune.cli import main\nimport jax.numpy as jnp\n"
        "source.purpose = lambda path: jnp.ones((1 << 22, 1 << 22)).sum().block_until_ready()\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    clean_failure(result, "out of memory", "batch_size")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ls", "schema"])
def test_a_reader_that_goes_away_and_a_full_disk_end_it_quietly(command):
    program = " ".join([*FINETUNE, command])
    for reader in ("true", "head -1"):
        result = subprocess.run(["bash", "-c", f"{program} | {reader}"], capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")
    full = subprocess.run(["bash", "-c", f"{program} > /dev/full"], capture_output=True, text=True)
    clean_failure(full, "No space left on device; make room")
    assert full.stderr.count("\n") == 1
