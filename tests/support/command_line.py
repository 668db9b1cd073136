"""The command line, for tests."""

import io
import itertools
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from finetune.cli import main

FINETUNE = [sys.executable, "-m", "finetune.cli"]
RECIPE = """\
backbone: {source: "builtin:tiny-clip"}
data: {source: digits, test: 0.1}
stages:
  - name: train
    steps: 2
    partitions:
      - {match: ".*", learning_rate: 1.0e-3}
"""


def in_a_process(*arguments, cwd=None):
    return subprocess.run([*FINETUNE, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


def finetune(*arguments, cwd=None, columns=80):
    """The same in this process, which saves the start of another; a bug's traceback fails the test."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd or Path.cwd())
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "argv", ["finetune", *map(str, arguments)])
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main sets it
        with pytest.raises(SystemExit) as stop:
            main()
    return subprocess.CompletedProcess(sys.argv, int(stop.value.code or 0), out.getvalue(), err.getvalue())


def clean_failure(result, *words):
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def read_table(text):
    """The rows of the first printed table as {column: cell}; column names may have spaces."""
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.strip() and not line.strip(" ─"))
    head, rows = lines[rule - 1], itertools.takewhile(str.strip, lines[rule + 1 :])
    starts = [match.start() for match in re.finditer(r"\S+(?: \S+)*", head)]
    columns = [slice(*ends) for ends in itertools.pairwise([*starts, None])]
    return [{head[column].strip(): row[column].strip() for column in columns} for row in rows]
