"""A disk that fills up while a run saves."""

import json
import os
import subprocess
import time

import pytest
from command_line import FINETUNE, clean_failure

RECIPE = """\
backbone: {source: "builtin:tiny-clip"}
data: {source: digits, test: 0.5, fraction: 0.1}
stages:
  - name: train
    epochs: 30
    batch_size: 16
    partitions:
      - {match: head, learning_rate: 1.0e-3}
      - {match: ".*", frozen: true}
"""


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(1 << 16))
            except OSError:
                return


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_weights_after_room_is_made(disk, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    command = [*FINETUNE, "run", "r.yaml", "--output"]
    subprocess.run([*command, "whole"], cwd=tmp_path, check=True, capture_output=True)
    with subprocess.Popen([*command, "disk/run"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        state = disk / "run" / "state"
        while process.poll() is None and not any(
            name.isdigit() for name in (os.listdir(state) if state.is_dir() else ())
        ):
            time.sleep(0.01)
        fill(disk)
        said = process.communicate(timeout=300)[1]
    clean_failure(subprocess.CompletedProcess([], process.returncode, "", said), "make room")
    before = {name for name in os.listdir(state) if name.isdigit()}
    assert before
    (disk / "filler").unlink()
    resumed = subprocess.run([*command, "disk/run", "--resume"], cwd=tmp_path, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    whole, continued = (
        json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "whole", disk / "run")
    )
    assert continued["weights_sha256"] == whole["weights_sha256"]
