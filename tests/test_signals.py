import os
import signal
import subprocess
import sys
import time

import pytest

from finetune.errors import Interrupted
from finetune.signals import StopSignal

# A computation that no handler of Python's comes into: the main thread waits in C until it is done.
COMPUTING = """
import signal
import jax, jax.numpy as jnp
from finetune.signals import StopSignal, own_process

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
own_process()
with StopSignal() as stop:
    stop.at_end = lambda: "run: what was saved is whole"
    print("computing", flush=True)
    x = jnp.ones((2000, 2000))
    jax.lax.fori_loop(0, 100_000, lambda i, x: x @ x / 2000, x).block_until_ready()
"""


def test_a_signal_is_only_remembered_and_a_second_one_acts_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        stop.check("at first")
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM while waiting") as raised:
            stop.check("while waiting")
        assert raised.value.exit_code == 143
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def computing():
    process = subprocess.Popen(
        [sys.executable, "-c", COMPUTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "computing\n"
    time.sleep(5)  # until it is inside the computation
    yield process
    process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_long_computation_does_not_keep_the_command_line_from_ending(computing, number):
    computing.send_signal(number)
    began = time.monotonic()
    _, said = computing.communicate(timeout=60)
    assert computing.returncode == 128 + number
    assert said.splitlines() == [
        "stopping at the next safe point; once more stops at once",
        "run: what was saved is whole",
    ]
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(computing):
    computing.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    began = time.monotonic()
    computing.send_signal(signal.SIGTERM)
    computing.communicate(timeout=60)
    assert computing.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert time.monotonic() - began < 5
