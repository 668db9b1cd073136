import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT, SMALL, TESTS

from finetune.errors import CheckpointError
from finetune.folder import lock
from finetune.folder.lock import FolderLock, Owner, lock_file

OWNER_ZERO = json.dumps({**dataclasses.asdict(Owner.this_process("run")), "pid": 0})  # which means all of a group


def write_lock(folder, **changes):
    """That of a process which has ended, with some things changed."""
    owner = dataclasses.replace(Owner.this_process("run"), started="long ago", token="another", **changes)
    beside = folder.with_name("beside")
    beside.write_text(json.dumps(dataclasses.asdict(owner)))
    beside.replace(lock_file(folder))
    return owner


def test_the_second_to_come_is_told_who_the_first_is(tmp_path):
    folder = tmp_path / "checkpoints" / "run"
    with FolderLock(folder, "--resume"):
        told = rf"in use by process {os.getpid()} on {socket.gethostname()} \(--resume, since .*; wait until it ends"
        with pytest.raises(CheckpointError, match=told), FolderLock(folder, "run"):
            pass
        assert os.listdir(tmp_path / "checkpoints") == [".run.lock"]
    assert not list(tmp_path.iterdir())


def test_a_lock_is_removed_whatever_the_end_and_what_came_beside_it_stays(tmp_path):
    folder = tmp_path / "checkpoints" / "run"
    with pytest.raises(FileExistsError), FolderLock(folder, "run"):
        (folder.mkdir(), folder.mkdir())
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoints", "run"]


@pytest.mark.parametrize("path", ["link/run", "checkpoints/run/../run", "checkpoints/run/", "./checkpoints/run"])
def test_a_folder_has_one_lock_by_whatever_path_it_is_reached(tmp_path, monkeypatch, path):
    (tmp_path / "checkpoints" / "run").mkdir(parents=True)
    (tmp_path / "link").symlink_to("checkpoints")
    monkeypatch.chdir(tmp_path)
    assert lock_file(Path(path)) == tmp_path / "checkpoints" / ".run.lock"
    monkeypatch.chdir(tmp_path / "checkpoints" / "run")
    assert lock_file(Path()) == tmp_path / "checkpoints" / ".run.lock"


def test_the_lock_of_a_process_that_has_ended_is_taken_over_and_that_is_said(tmp_path):
    owner = write_lock(tmp_path / "run")  # its number is that of a process which started later
    lines = []
    with FolderLock(tmp_path / "run", "run", lines.append):
        pass
    assert lines == [f"{tmp_path / 'run'}: taken over from {owner}, which has ended without unlocking it"]


def test_a_process_of_another_machine_counts_as_dead_after_minutes_without_a_heartbeat(tmp_path):
    write_lock(tmp_path / "run", machine="elsewhere", host="elsewhere")
    told = "in use by process .* on elsewhere .* seconds ago: after 300 it would count as dead"
    with pytest.raises(CheckpointError, match=told), FolderLock(tmp_path / "run", "run"):
        pass
    long_ago = time.time() - lock.STALE - 1
    os.utime(lock_file(tmp_path / "run"), (long_ago, long_ago))
    lines = []
    with FolderLock(tmp_path / "run", "run", lines.append):
        pass
    assert "taken over from process" in lines[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "[" * 10_000, OWNER_ZERO])
def test_a_lock_that_was_being_written_at_a_kill_is_nobodys(tmp_path, content):
    lock_file(tmp_path / "run").write_text(content)
    with FolderLock(tmp_path / "run", "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_a_link_or_a_pipe_is_refused_and_nothing_is_written_through_it(tmp_path):
    (tmp_path / "mine").write_text("mine")
    lock_file(tmp_path / "run").symlink_to("mine")
    with pytest.raises(CheckpointError, match=r"\.run\.lock: a link"), FolderLock(tmp_path / "run", "run"):
        pass
    os.mkfifo(lock_file(tmp_path / "pipe"))
    with pytest.raises(CheckpointError, match="not an ordinary file"), FolderLock(tmp_path / "pipe", "run"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_heartbeat_keeps_the_lock_young_and_notes_who_takes_it_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.002)
    file = lock_file(tmp_path / "run")
    with FolderLock(tmp_path / "run", "run") as held:
        os.utime(file, (0, 0))
        wait_until(lambda: file.stat().st_mtime > 0)
        file.unlink()
        wait_until(lambda: file.exists() and file.stat().st_size)
        held.check()
        write_lock(tmp_path / "run")
        wait_until(lambda: held._successor)
        with pytest.raises(CheckpointError, match="taken over by process"):
            held.check()
    assert file.is_file()  # the other's


def wait_until(done, seconds=60):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_a_fork_of_the_owner_does_not_remove_the_lock(tmp_path):
    script = (
        "import os, pathlib, sys\n"
        "from finetune.folder.lock import FolderLock\n"
        "with FolderLock(pathlib.Path('run'), 'run') as held:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        sys.exit()\n"
        "    os.waitpid(child, 0)\n"
        "    assert held.file.is_file()\n"
        "assert not held.file.exists()\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=60)


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.slow
@pytest.mark.parametrize("stale", [False, True])
def test_of_processes_that_come_at_once_one_has_the_lock(tmp_path, stale):
    command = [sys.executable, str(TESTS / "support" / "lock_taker.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    takers = [subprocess.Popen(command, **pipes) for _ in range(3)]
    try:
        for number in range(40):
            folder = tmp_path / "new" / str(number)
            if stale:
                folder.parent.mkdir(exist_ok=True)
                write_lock(folder)
            moment = time.time() + (2 if number == 0 else 0.02)
            for taker in takers:
                print(moment, folder, file=taker.stdin, flush=True)
            answers = [taker.stdout.readline() for taker in takers]
            winner = takers[answers.index("took\n")]
            assert [f"in use by process {winner.pid} on" in answer for answer in answers].count(True) == 2, answers
            for taker in takers:
                print(file=taker.stdin, flush=True)
    finally:
        for taker in takers:
            taker.stdin.close()
            taker.wait(timeout=60)
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.slow
def test_a_run_keeps_others_off_its_folder_until_it_is_killed(tmp_path):
    command = [sys.executable, "-m", "finetune.cli", "run", str(SMALL), "--output", "run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT, "cwd": tmp_path}
    first = subprocess.Popen(command, **pipes)
    try:
        wait_until((tmp_path / "run" / "state").is_dir, 120)
        for option in ("--resume", "--overwrite"):
            second = subprocess.run([*command, option], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
            assert second.returncode == 2
            assert f"run: in use by process {first.pid} on {socket.gethostname()} (run, since" in second.stderr
            assert "Traceback" not in second.stderr
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=120)
    finally:
        first.kill()
    assert (tmp_path / ".run.lock").exists()
    last = subprocess.run([*command, "--resume"], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert f"taken over from process {first.pid} on" in last.stderr
    assert os.listdir(tmp_path) == ["run"]
