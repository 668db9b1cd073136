import json
import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from paths import SMALL

import finetune
from finetune.data.image_record import ImageRecord
from finetune.errors import CheckpointError, Interrupted
from finetune.folder.about import about_run
from finetune.folder.run_folder import RunFolder
from finetune.recipe import Recipe
from finetune.run.continuation import check_continuation, find_state_to_extend
from finetune.run.predictions import read_predictions
from finetune.run.resume import Kept, ResumePoint, RunProgress
from finetune.signals import StopSignal


def small(*overrides):
    return finetune.load_recipe(SMALL, overrides)


@pytest.fixture
def started(tmp_path):
    """A folder whose run has begun."""
    folder = RunFolder(tmp_path / "run")
    folder.start(small(), about_run(small(), "weights", "images"))
    return folder


class Named:
    """Images by number."""

    def __len__(self):
        return 3

    def name(self, index):
        return f"{index}.png"


NAMED = Named()


def setup(*overrides, backbone="weights", images="images"):
    record = ImageRecord({"data.source": images}, {"data.source": np.arange(3)}, {"data.source": [NAMED]})
    return SimpleNamespace(recipe=small(*overrides), backbone_sha256=backbone, images=record)


HARMLESS = ["data.num_workers=2", "evaluate.batch_size=8", "name=other", "save.every={minutes: 1}", "save.keep_last=5"]


@pytest.mark.parametrize("override", HARMLESS)
def test_what_cannot_change_the_result_is_accepted_and_said(started, override):
    continuation = check_continuation(started, setup(override), extend=False)
    (line,) = [line for line in continuation.lines if line.startswith("resuming with another")]
    assert override.partition("=")[0] in line


def test_images_may_have_moved(tmp_path):
    folder, before = RunFolder(tmp_path / "run"), small("data.source=/before")
    folder.start(before, about_run(before, "weights", "images"))
    (line,) = check_continuation(folder, setup("data.source=/after"), extend=False).lines
    assert line == "resuming with another data.source: '/before' -> '/after'"


@pytest.mark.parametrize("override", ["seed=4", "stages.1.batch_size=16", "~stages.0", "evaluate.metric=loss"])
@pytest.mark.parametrize("extend", [False, True])
def test_the_rest_is_refused_with_a_diff(started, override, extend):
    with pytest.raises(CheckpointError, match=r"cannot resume: .*\n  [a-z0-9._]+: .* -> "):
        check_continuation(started, setup(override), extend=extend)


def test_a_shorter_stage_is_no_extension(started):
    with pytest.raises(CheckpointError, match=r"stages\.1\.epochs: 3 -> 2: a stage can only be longer"):
        check_continuation(started, setup("stages.1.epochs=2"), extend=True)
    with pytest.raises(CheckpointError, match="no stage is longer than it was"):
        check_continuation(started, setup(), extend=True)


def test_other_weights_or_images_are_refused(started):
    with pytest.raises(CheckpointError, match="the backbone has other weights"):
        check_continuation(started, setup(backbone="others"), extend=False)
    with pytest.raises(CheckpointError, match="other images or labels"):
        check_continuation(started, setup(images="others"), extend=False)


def at(stage, step=None):
    return RunProgress(stage=stage, point=None if step is None else ResumePoint(step, {}))


def test_a_longer_stage_goes_on_from_its_newest_state_within(started):
    ended = {5: at(0, 5), 10: at(0, 10), 15: at(0)}
    assert find_state_to_extend(ended, setup(), (0,)) == 10
    under_way = {5: at(0, 5), 10: at(0, 10)}
    assert find_state_to_extend(under_way, setup(), (0,)) == 10
    to_come = {10: at(0, 10), 15: at(0)}
    assert find_state_to_extend(to_come, setup(), (1,)) == 15


def test_a_stage_that_others_were_trained_from_cannot_be_longer(started):
    with pytest.raises(CheckpointError, match=r"'finetune' has been trained from 'probe'"):
        find_state_to_extend({20: at(1, 5)}, setup(), (0,))
    with pytest.raises(CheckpointError, match="no state within it is kept"):
        find_state_to_extend({20: at(1)}, setup(), (1,))


@pytest.mark.slow
def test_a_finished_run_is_extended_with_a_schedule_made_anew(small_run, tmp_path, capsys):
    output = shutil.copytree(small_run.directory, tmp_path / "run")
    longer = small("stages.1.epochs=5", "data.num_workers=1")
    extended = finetune.run(longer, output=output, extend=True)
    said = capsys.readouterr().err
    assert re.search(r"finetune: \d+ -> \d+ steps: the schedules are made anew; learning rate at step \d+: head", said)
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    epochs = [r["epoch"] for r in records if r["split"] == "epoch" and r["stage"] == "finetune"]
    assert epochs == [1, 2, 3, 4, 5]
    assert [r["name"] for r in extended.summary["results"]] == ["zero_shot", "probe", "finetune", "interpolated"]
    assert extended.summary["frozen_unchanged"]
    assert finetune.load_recipe(output / "recipe.yaml").stages[1].epochs == 5
    (went_on,) = json.loads((output / "run.json").read_text())["history"]
    assert went_on["changed"]["stages.1.epochs"] == [3, 5]
    again = finetune.run(longer, output=output, resume=True, quiet=True)
    assert again.summary == extended.summary


def test_the_kept_model_has_its_result_under_a_name_of_its_own_beside_that_of_the_longer_stage():
    def result(name, before=None, **more):
        return {"name": name, **({"paired": {"before": before, "gained": 1}} if before else {}), **more}

    start = RunProgress(0, results=[result("probe")], also={"other": []}, kept=Kept("interpolated", 0.9, "hash"))
    newest = RunProgress(
        1,
        results=[result("probe"), result("finetune", "probe"), result("interpolated", "finetune", accuracy=0.9)],
        also={"other": [result("finetune"), result("interpolated", accuracy=0.8)]},
    )
    brought = start.with_kept_of(newest, " (22 steps)")
    assert brought.kept.stage == "interpolated (22 steps)"
    assert brought.results == [result("probe"), result("interpolated (22 steps)", "finetune (22 steps)", accuracy=0.9)]
    assert brought.also == {"other": [result("interpolated (22 steps)", accuracy=0.8)]}


@pytest.mark.slow
def test_a_longer_stage_that_is_worse_leaves_the_model_and_all_that_is_said_of_it(tmp_path):
    recipe = {
        "name": "longer",
        "seed": 2,
        "backbone": {"source": "builtin:tiny-clip"},
        "head": {"init": "zeros"},
        "data": {"source": "digits", "fraction": 0.2, "validation": 0.3, "test": 0.3},
        "stages": [
            {
                "name": "finetune",
                "epochs": 2,
                "batch_size": 16,
                "partitions": [
                    {"match": "head", "learning_rate": 0.3, "schedule": "cosine"},
                    {"match": ".*", "frozen": True},
                ],
            }
        ],
        "evaluate": {"metric": "loss"},
    }
    output = tmp_path / "run"
    (before,) = finetune.run(Recipe.model_validate(recipe), output=output, quiet=True).summary["results"]
    summary = RunFolder(output).summary()
    summary["kept"]["validation"] = 0.0  # a loss that no further step can reach
    RunFolder(output).write_summary(summary)
    recipe["stages"][0]["epochs"] = 3
    summary = finetune.run(Recipe.model_validate(recipe), output=output, extend=True, quiet=True).summary
    kept, worse = summary["results"]
    assert (kept["name"], worse["name"]) == ("finetune (22 steps)", "finetune")
    assert {**kept, "name": "finetune"} == before
    assert summary["kept"]["stage"] == "finetune (22 steps)"
    assert worse["paired"]["before"] == "finetune (22 steps)"
    assert finetune.evaluate_run(output)["loss"] == pytest.approx(kept["loss"], abs=1e-6)
    (compared,) = finetune.compare_runs([output])
    assert compared["results"]["name"] == "finetune (22 steps)"
    assert read_predictions(output / "predictions.parquet", "finetune (22 steps)") is not None


# What a signal may come into, as its message says it.
PHASES = [
    "during checking train images",
    "during zero_shot: features",
    "during finetune: validation",
    "during finetune: test",
    "during interpolated: 0.3",
]


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_stopped_in_any_phase_resumes_to_the_same_bits(small_run, tmp_path, monkeypatch, phase):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    check, seen = StopSignal.check, []

    def check_once(self, when):
        if phase in when and not seen:
            seen.append(when)
            os.kill(os.getpid(), signal.SIGTERM)
        check(self, when)

    monkeypatch.setattr(StopSignal, "check", check_once)
    with pytest.raises(Interrupted, match=re.escape(phase)) as stopped:
        finetune.run(small(), output=tmp_path / "run", quiet=True)
    assert ("nothing had been started" in str(stopped.value)) == (phase == PHASES[0])
    resumed = finetune.run(small(), output=tmp_path / "run", resume=True, quiet=True).summary
    assert resumed["weights_sha256"] == small_run.summary["weights_sha256"]
    for key in ("results", "kept", "calibration", "interpolation", "weight_change", "verdict"):
        assert resumed[key] == small_run.summary[key], key


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_says_that_bits_may_differ(small_run, tmp_path):
    output = shutil.copytree(small_run.directory, tmp_path / "run")
    command = [sys.executable, "-m", "finetune.cli", "run", str(SMALL), "--output", str(output), "--resume"]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    done = subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1 x cpu: cpu at the start, 2 x cpu: cpu now: the last bits of the result may differ" in done.stderr
