"""The last step of a run: weights between those before and after fine-tuning."""

import json
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from command_line import FINETUNE
from safetensors.numpy import load_file

import finetune
from finetune.checkpoint import RunCheckpoints
from finetune.run.interpolation import _choose, start_of_interpolation
from finetune.run.setup import prepare_run
from finetune.trees import flatten, interpolate, unflatten

RECIPE = """\
name: overshot
seed: 3
backbone: {source: "builtin:tiny-clip"}
head: {init: zero_shot, templates: ["the digit {}"]}
data: {source: digits, fraction: 0.1, validation: 0.3, test: 0.1}
stages:
  - epochs: 2
    batch_size: 32
    partitions:
      - {match: head, learning_rate: 1.0e-3}
      - {match: "blocks[-1:]", learning_rate: 5.0e-3}
      - {match: ".*", frozen: true}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "overshot.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def overshot(file, tmp_path_factory):
    """A run whose learning rate is far too high."""
    return finetune.run(finetune.load_recipe(file), output=tmp_path_factory.mktemp("run") / "overshot", quiet=True)


def test_interpolation_is_exact_where_the_ends_agree_and_leaves_integers_alone():
    start = {"a": np.float32(0.1), "b": np.float32([1, 2]), "n": np.int32(1)}
    end = {"a": np.float32(0.1), "b": np.float32([3, 2]), "n": np.int32(5)}
    mixed = interpolate(start, end, 0.3)
    assert mixed["a"] == start["a"]
    assert mixed["n"] == 5
    np.testing.assert_allclose(mixed["b"], [1.6, 2])


def test_what_hurt_is_undone_on_validation_and_said(overshot):
    summary = overshot.summary
    zero_shot, finetuned, mixed = (result["accuracy"] for result in summary["results"])
    assert finetuned < zero_shot
    assert mixed > finetuned
    found = summary["interpolation"]
    assert found["between"] == ["zero_shot", "finetune"]
    assert found["shares"] == [i / 10 for i in range(11)]
    assert found["validation"][int(10 * found["best"])] == max(found["validation"])
    assert 0 < found["best"] < 1
    assert summary["kept"]["stage"] == "interpolated"
    assert summary["verdict"].startswith("finetune: -")
    assert "Kept: interpolated, the best on the validation images." in summary["verdict"]


def test_the_saved_weights_lie_between_the_two_ends(overshot):
    start = finetune.load_backbone("builtin:tiny-clip").variables
    head = unflatten(load_file(overshot.directory / "start.safetensors"))
    start = {"params": {"backbone": start["params"], **head["params"]}}
    with RunCheckpoints(overshot.directory / "state", read_only=True) as states:
        end = states.variables(states.steps()[-1])
    saved = flatten(overshot.predictor().variables)
    share = overshot.summary["interpolation"]["best"]
    for path, leaf in flatten(end).items():
        first = flatten(start)[path]
        np.testing.assert_allclose(saved[path], first + share * (leaf - first), atol=1e-7, err_msg=path)


def test_the_ends_are_measured_again_and_agree(overshot):
    records = [json.loads(line) for line in (overshot.directory / "metrics.jsonl").read_text().splitlines()]
    ends = {record["stage"]: record for record in records if record["split"] == "validation" and "share" not in record}
    shares = {record["share"]: record for record in records if "share" in record}
    assert shares[0.0]["accuracy"] == ends["zero_shot"]["accuracy"]
    assert shares[1.0]["accuracy"] == ends["finetune"]["accuracy"]


def test_a_finished_run_is_measured_again_to_the_same_figures(overshot):
    again = finetune.evaluate_run(overshot.directory)
    assert again["accuracy"] == overshot.summary["results"][-1]["accuracy"]


def test_of_equal_shares_a_mixture_of_the_least_loss_is_chosen():
    shares = [(0.9, 1.0)] * 11
    shares[4] = (0.9, 0.5)
    assert _choose(shares) == 0.4
    assert _choose([(0.9, 1.0), *[(0.8, 0.1)] * 9, (0.9, 2.0)]) == 1.0
    assert _choose([(0.91, 1.0), *[(0.8, 0.1)] * 9, (0.9, 2.0)]) == 0.0


@pytest.mark.parametrize(
    "overrides",
    [
        ["evaluate.interpolation=off"],
        ["data.validation=0"],
        ["head.init=zeros", "~head.templates"],
        ["stages.0.partitions.1.frozen=true", "~stages.0.partitions.1.learning_rate"],
    ],
)
def test_there_is_no_such_step_where_it_is_off_or_there_is_nothing_to_choose_or_to_mix(file, overrides):
    setup = prepare_run(finetune.load_recipe(file, overrides))
    assert start_of_interpolation(setup) is None


RESNET = """\
name: resnet
backbone: {source: SOURCE, image_size: 64}
data: {source: digits, fraction: 0.1, validation: 0.3, test: 0.1}
evaluate: {interpolation: HOW}
stages:
  - {name: probe, type: linear_probe, l2: 1.0}
  - epochs: 1
    batch_size: 16
    partitions:
      - {match: ".*", learning_rate: 1.0e-3}
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["reestimate", "average"])
def test_running_statistics_are_estimated_anew_or_averaged(tmp_path, goldens, how):
    file = tmp_path / "resnet.yaml"
    file.write_text(RESNET.replace("SOURCE", str(goldens / "resnet-basic")).replace("HOW", how))
    run = finetune.run(finetune.load_recipe(file), output=tmp_path / "run", quiet=True)
    assert run.summary["interpolation"]["statistics"] == how
    if 0 < run.summary["interpolation"]["best"] < 1:
        leaves = jax.tree.leaves(run.predictor().variables["batch_stats"])
        assert all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.slow
def test_a_run_that_is_stopped_within_it_goes_on_to_the_same_weights(file, overshot, tmp_path):
    running = subprocess.Popen(
        [*FINETUNE, "run", file, "--output", tmp_path / "run"], stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "run" / "metrics.jsonl"
    while running.poll() is None and not (log.is_file() and '"share": 0.2' in log.read_text()):
        time.sleep(0.002)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert "SIGTERM during interpolated: " in said
    assert "; saved: continue with --resume" in said
    again = finetune.run(finetune.load_recipe(file), output=tmp_path / "run", resume=True, quiet=True)
    assert again.summary["interpolation"] == overshot.summary["interpolation"]
    assert again.summary["weights_sha256"] == overshot.summary["weights_sha256"]
