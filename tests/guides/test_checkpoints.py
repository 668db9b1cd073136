"""Flax's guide on saving and loading checkpoints."""

import re

import pytest


@pytest.mark.slow
def test_the_example_saves_lists_restores_continues_and_keeps_the_best(run_example, tmp_path):
    out = run_example("checkpoints.py", "out")
    assert "continued from step 30 to 40; equal to an unbroken training: True" in out
    states = [int(step) for step in re.search(r"states of the run: \[(.*)\]", out)[1].split(", ")]
    assert states[-1] == 68
    assert float(re.search(r"best: ([\d.]+)$", out, re.MULTILINE)[1]) > 0.97
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["loop", "run", "served"]
