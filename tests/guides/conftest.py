"""Running an example as its reader does."""

import subprocess
import sys

import pytest
from paths import ROOT


@pytest.fixture
def run_example(tmp_path):
    """``run_example(name, *arguments)``: what ``python examples/NAME`` prints in an empty folder; it has to succeed."""
    folder = ROOT / "examples"

    def run(name, *arguments):
        command = [sys.executable, str(folder / name), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
