"""Runs of several real processes on the loopback."""

import json
import signal
import time

import pytest
from members import finish, start
from paths import SMALL

pytestmark = pytest.mark.slow


def summary(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def losses(folder):
    return [result["loss"] for result in summary(folder)["results"]]


@pytest.fixture(scope="module")
def one(once):
    """By one process with four devices."""

    def make(folder):
        [(code, _, err)] = finish(start(1, 4, SMALL, "--output", folder / "run"))
        assert code == 0, err

    return once("one_process", make) / "run"


def test_two_processes_of_two_devices_give_what_one_of_four_gives(tmp_path, one):
    (first, out, err), (second, others_out, others_err) = finish(start(2, 2, SMALL, "--output", tmp_path / "run"))
    assert (first, second) == (0, 0), err + others_err
    assert losses(tmp_path / "run") == pytest.approx(losses(one), abs=1e-6)
    assert "mesh: data 4 (4 x cpu)" in err
    assert "saved in" in out
    assert others_out == ""  # one of them speaks
    assert "epoch" not in others_err
    ours, theirs = (summary(folder) for folder in (tmp_path / "run", one))
    assert ours.keys() == theirs.keys()
    assert ours["frozen_unchanged"]
    assert "paired" in ours["results"][-1]


def test_the_end_of_the_primary_ends_the_other_with_one_message_and_one_goes_on(tmp_path, one):
    folder = tmp_path / "run"
    processes = start(2, 2, SMALL, "--output", folder)
    wait_for(lambda: (folder / "state").is_dir() and any((folder / "state").iterdir()))
    processes[0].send_signal(signal.SIGKILL)
    _, (code, _, err) = finish(processes, timeout=60)
    assert code == 2
    assert "rocess 0 of 2" in err
    assert "--resume" in err
    assert "Traceback" not in err
    assert err.count("error:") == 1
    [(code, _, err)] = finish(start(1, 4, SMALL, "--output", folder, "--resume"))
    assert code == 0, err
    assert losses(folder) == pytest.approx(losses(one), abs=1e-6)


@pytest.mark.long  # the kill above is like it
def test_a_signal_to_one_stops_all_and_four_go_on(tmp_path):
    folder, longer = tmp_path / "run", "stages.1.epochs=100"
    processes = start(2, 2, SMALL, "--output", folder, longer)
    log = folder / "metrics.jsonl"
    wait_for(lambda: log.is_file() and '"validation"' in log.read_text(encoding="utf-8").partition("finetune")[2])
    processes[1].send_signal(signal.SIGTERM)
    ends = finish(processes, timeout=60)
    assert [code for code, _, _ in ends] == [128 + signal.SIGTERM] * 2, ends
    assert "saved: continue with --resume" in ends[0][2]
    for code, _, err in (ends := finish(start(4, 1, SMALL, "--output", folder, "--resume", longer))):
        assert code == 0, err
    assert "resuming at step" in ends[0][2]


def test_a_batch_that_processes_cannot_share_is_one_message(tmp_path):
    ends = finish(start(2, 2, SMALL, "--output", tmp_path / "run", "stages.1.batch_size=30"), timeout=60)
    for code, _, err in ends:
        assert code == 2
        assert "Traceback" not in err
    assert "stages.1.batch_size: 30 does not divide among 4 devices of 2 processes" in ends[0][2]
    assert not (tmp_path / "run").exists()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
