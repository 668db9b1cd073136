"""Real processes on this machine, real signals."""

import os
import random
import re
import signal
import sys
import time

import pytest
from command_line import FINETUNE
from paths import ROOT
from several import Several, free_port

pytestmark = pytest.mark.slow

SOON = 20  # seconds; on a busy machine
PROGRAM = [sys.executable, ROOT / "tests" / "support" / "psum_loop.py"]


@pytest.fixture
def start(tmp_path):
    """Starts the loop in several processes; it returns when they compute."""
    started = []

    def start(count, *how):
        address = f"127.0.0.1:{free_port()}"
        several = Several([[*PROGRAM, address, count, index, *how] for index in range(count)], tmp_path)
        started.append(several)
        several.wait_for(f"of {count}\n")
        return several

    yield start
    for several in started:
        several.close()


def assert_one_message(output, *words):
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    for word in words:
        assert word in errors[0]
    rest = re.sub(
        r"process \d.*: waits.*|\d of \d|error: .*", "", output
    ).strip()  # nothing that C++ logs, no traceback
    assert not rest, output


@pytest.mark.parametrize(("count", "victim", "how"), [(2, 0, ""), (2, 1, "apart"), (4, 2, "")])
def test_a_killed_process_ends_the_others_soon_with_one_message(start, count, victim, how):
    several = start(count, *[how] * bool(how))
    time.sleep(random.Random(f"{count} {victim} {how}").uniform(0, 2))
    several.processes[victim].kill()
    codes = several.ends(SOON)
    assert codes == [-signal.SIGKILL if index == victim else 2 for index in range(count)]
    for index, output in enumerate(several.outputs()):
        if index != victim:
            assert_one_message(output, f"Process {victim} of {count} ended: killed", "--resume, as many as you like")


@pytest.mark.long
def test_a_process_that_hangs_ends_the_others_when_its_heartbeat_is_missed(start):
    several = start(2)
    several.processes[0].send_signal(signal.SIGSTOP)
    codes = several.ends(10 + SOON, but=[0])
    assert codes[1] == 2
    assert_one_message(several.outputs()[1], "A process of 2 does not answer", "--resume")


@pytest.mark.parametrize(("how", "code", "words"), [("error", 2, "a mistake"), ("bug", 1, "ZeroDivisionError: a bug")])
def test_an_error_of_one_process_ends_the_others_with_its_words(start, how, code, words):
    several = start(2, how)
    assert several.ends(SOON) == [2, code]
    assert_one_message(several.outputs()[0], f"Process 1 of 2 ended: {words} of process 1")


def test_all_end_together_and_the_last_is_waited_for(start):
    several = start(2, "late")
    assert several.ends(SOON) == [0, 0]
    assert all(output.endswith("done\n") for output in several.outputs())


def test_a_process_that_stops_with_the_others_is_given_time_to_save(start):
    several = start(2, "interrupted")
    assert several.ends(SOON) == [143, 143]
    for output in several.outputs():
        assert_one_message(output, "SIGTERM at step 7")


def test_processes_that_jax_has_made_one_before_are_watched_too(start):
    several = start(2, "own member")
    time.sleep(2)
    several.processes[1].kill()
    assert several.ends(SOON)[0] == 2
    assert "error: Process 1 of 2 ended: killed" in several.outputs()[0]


def run_commands(folder, *arguments):
    several = Several([[*FINETUNE, "run", *command] for command in arguments], folder)
    try:
        return several.ends(60), several.outputs()
    finally:
        several.close()


def member_of(count, index, port, *further):
    return ["--coordinator", f"127.0.0.1:{port}", "--num-processes", count, "--process-id", index, *further]


def test_a_coordinator_that_is_not_there_is_waited_for_and_then_named(tmp_path):
    port = free_port()
    codes, [output] = run_commands(tmp_path, ["quickstart", *member_of(2, 1, port, "--join-timeout", 1)])
    assert codes == [2]
    assert_one_message(output, f"no coordinator at 127.0.0.1:{port} within 1 s (Connection refused)", "--join-timeout")


def test_processes_that_do_not_come_are_named(tmp_path):
    port = free_port()
    codes, outputs = run_commands(
        tmp_path, *[["quickstart", *member_of(4, index, port, "--join-timeout", 5)] for index in (0, 2)]
    )
    assert codes == [2, 2]
    for output in outputs:
        assert_one_message(output, "processes 1, 3 of 4 did not come")


@pytest.mark.long
def test_a_recipe_that_is_wrong_everywhere_is_said_by_each(tmp_path):
    port = free_port()
    codes, outputs = run_commands(tmp_path, *[["no-such-recipe", *member_of(2, index, port)] for index in (0, 1)])
    assert codes == [2, 2]
    for output in outputs:
        assert_one_message(output, "no-such-recipe: no such file")


def test_a_recipe_that_is_wrong_for_one_ends_the_other(tmp_path):
    port = free_port()
    codes, outputs = run_commands(
        tmp_path,
        ["quickstart", "--output", tmp_path / "run", *member_of(2, 0, port)],
        ["no-such-recipe", *member_of(2, 1, port)],
    )
    assert codes == [2, 2]
    assert "error: Process 1 of 2 ended: no-such-recipe: no such file" in outputs[0]
    assert_one_message(outputs[1], "no-such-recipe: no such file")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_PLATFORMS": "cuda"}, "JAX cannot start the backend that it is asked for (JAX_PLATFORMS=cuda)"),
        (
            {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
            "same number of devices; here, process 0: 1, process 1: 2",
        ),
    ],
    ids=["no such backend", "more devices"],
)
def test_a_machine_that_is_unlike_the_others_is_said_by_all(tmp_path, monkeypatch, variables, message):
    port = free_port()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    unlike = ["env", *[f"{name}={value}" for name, value in variables.items()]]
    commands = [
        [*FINETUNE, "run", "quickstart", "--output", tmp_path / "run", *member_of(2, index, port)] for index in (0, 1)
    ]
    several = Several([commands[0], [*unlike, *commands[1]]], tmp_path)
    try:
        assert several.ends(60) == [2, 2]
    finally:
        several.close()
    for output in several.outputs():
        assert_one_message(output, message)
    assert not os.path.exists(tmp_path / "run")
