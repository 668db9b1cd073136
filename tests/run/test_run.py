import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow.parquet
import pytest
from flax.traverse_util import flatten_dict
from paths import SMALL
from PIL import Image

import finetune
from finetune.checkpoint import RunCheckpoints
from finetune.errors import CheckpointError, DataError, FinetuneError, Interrupted, PartitionError


def small(*overrides):
    return finetune.load_recipe(SMALL, overrides)


@pytest.fixture
def copy_of_run(small_run, tmp_path):
    """Its folder, for this test alone: one process at a time works on a run's."""
    return shutil.copytree(small_run.directory, tmp_path / "small_run")


def test_a_run_leaves_everything_its_folder_promises(small_run):
    names = {path.name for path in small_run.directory.iterdir()}
    files = {"recipe.yaml", "run.json", "metrics.jsonl", "summary.json", "predictions.parquet", "report.html"}
    files |= {"start.safetensors", "images.safetensors"}
    assert names == files | {"state", "model", "figures"}
    summary = json.loads((small_run.directory / "summary.json").read_text())
    assert [r["name"] for r in summary["results"]] == ["zero_shot", "probe", "finetune", "interpolated"]
    assert {"name", "split", "n", "accuracy"} <= summary["results"][0].keys()
    assert summary["frozen_unchanged"] is True
    assert set(summary["seconds"]) == {"load", "zero_shot", "probe", "finetune", "interpolated"}
    about = json.loads((small_run.directory / "run.json").read_text())
    assert about["versions"]["jax"] == jax.__version__


def test_the_predictions_of_each_step_are_those_that_its_result_and_the_verdict_count(small_run):
    table = pyarrow.parquet.read_table(small_run.directory / "predictions.parquet").to_pandas()
    steps = small_run.summary["results"]
    right = {}
    for step in steps:
        logits = np.stack(table[f"logits.{step['name']}"])
        np.testing.assert_allclose(
            np.stack(table[f"probabilities.{step['name']}"]), jax.nn.softmax(logits, axis=1), atol=1e-6
        )
        right[step["name"]] = logits.argmax(1) == table["label"]
        assert right[step["name"]].mean() == pytest.approx(step["accuracy"])
        assert step["accuracy_interval"][0] < step["accuracy"] < step["accuracy_interval"][1]
    assert table["path"].is_unique
    for before, step in itertools.pairwise(steps):
        assert step["paired"]["before"] == before["name"]
        assert step["paired"]["gained"] == (right[step["name"]] & ~right[before["name"]]).sum()
        assert step["paired"]["lost"] == (right[before["name"]] & ~right[step["name"]]).sum()
    kept = small_run.summary["kept"]["stage"]
    assert f"Kept: {kept}, the best on the validation images." in small_run.summary["verdict"]


def test_metrics_tell_loss_accuracy_rate_and_speed_of_every_epoch(small_run):
    records = [json.loads(line) for line in (small_run.directory / "metrics.jsonl").read_text().splitlines()]
    train = [r for r in records if r["stage"] == "finetune" and r["split"] == "train"]
    assert [r["epoch"] for r in train][-1] == 3
    assert all(r["images_per_second"] > 0 and 0 <= r["accuracy"] <= 1 for r in train)
    partitions = {"head/.*", "backbone/encoder/layers/3/.*"}
    assert set(train[0]["learning_rate"]) == set(train[0]["grad_norm"]) == partitions
    assert all(norm > 0 for record in train for norm in record["grad_norm"].values())
    validations = [r["stage"] for r in records if r["split"] == "validation" and "share" not in r]
    assert validations == ["zero_shot", "probe", "finetune", "finetune", "finetune"]


def test_frozen_leaves_are_bit_identical_after_training_and_the_others_moved(small_run, tiny_clip):
    source = flatten_dict(tiny_clip.variables["params"], sep="/")
    trained = flatten_dict(small_run.predictor().variables["params"]["backbone"], sep="/")
    for path, leaf in source.items():
        same = np.array_equal(leaf, trained[path])
        # attention ignores a constant added to every key: that bias alone gets no gradient
        assert same != path.startswith("encoder/layers/3/") or path.endswith("k_proj/bias"), path


def test_the_summary_proves_what_was_frozen_and_tells_how_far_the_rest_moved(small_run, tiny_clip):
    summary = small_run.summary
    source = flatten_dict(tiny_clip.variables["params"], sep="/")
    still = [path for path in source if not path.startswith("encoder/layers/3/")]
    assert summary["frozen"] == {"parameters": len(still), "statistics": 0, "changed": []}
    moved = summary["weight_change"]["finetune"]
    assert set(moved) == {"head/.*", "backbone/encoder/layers/3/.*", "frozen"}
    assert moved["frozen"]["distance"] == 0.0
    trained = flatten_dict(finetune.restore(small_run.directory, step="last").variables["params"]["backbone"], sep="/")
    squares = [np.square(trained[path] - leaf).sum() for path, leaf in source.items() if path not in still]
    block = moved["backbone/encoder/layers/3/.*"]
    np.testing.assert_allclose(block["distance"], np.sqrt(sum(squares)), rtol=1e-4)
    assert 0 < block["relative"] < 0.1


@pytest.mark.slow
def test_the_saved_recipe_runs_again_to_the_same_weights(small_run, tmp_path):
    again = finetune.run(finetune.load_recipe(small_run.directory / "recipe.yaml"), output=tmp_path / "b", quiet=True)
    assert again.summary["weights_sha256"] == small_run.summary["weights_sha256"]


def test_only_what_learns_is_written_to_the_state(small_run):
    step = max((small_run.directory / "state").iterdir(), key=lambda p: int(p.name))
    stored = (step / "variables" / "_METADATA").read_text()
    assert "layers" in stored
    assert "'2'" not in stored
    assert "patch_embedding" not in stored


def test_a_folder_with_a_run_is_not_written_over(small_run, copy_of_run):
    recipe = finetune.load_recipe(small_run.directory / "recipe.yaml")
    with pytest.raises(CheckpointError, match=r"already holds a run; continue it with --resume"):
        finetune.run(recipe, output=copy_of_run, quiet=True)


def test_resuming_a_finished_run_gives_its_summary(small_run, copy_of_run):
    recipe = finetune.load_recipe(small_run.directory / "recipe.yaml")
    assert finetune.run(recipe, output=copy_of_run, resume=True, quiet=True).summary == small_run.summary


def test_resuming_with_another_recipe_is_refused_by_name(small_run, copy_of_run):
    with pytest.raises(CheckpointError, match=r"--extend goes on with longer stages\n  stages\.1\.epochs: 3 -> 4"):
        finetune.run(small("stages.1.epochs=4"), output=copy_of_run, resume=True, quiet=True)


def test_overwrite_removes_nothing_where_there_are_files_that_no_run_wrote(small_run, tmp_path):
    shutil.copytree(small_run.directory, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"has files that no run wrote: notes\.txt; move them"):
        finetune.run(small(), output=tmp_path / "run", overwrite=True, quiet=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([*before, "notes.txt"])


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_that_cannot_be_used_is_told_before_anything_is_loaded(tmp_path, monkeypatch, options):
    module = importlib.import_module("finetune.run.run")
    monkeypatch.setattr(module, "prepare_run", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text('{"of": "another program"}')
    (tmp_path / "mine" / "model").mkdir()
    with pytest.raises(CheckpointError, match="holds no run|this is none"):
        finetune.run(small(), output=tmp_path / "mine", quiet=True, **options)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["model", "run.json"]


def test_overwrite_keeps_the_earlier_run_where_the_new_one_cannot_start(small_run, copy_of_run):
    with pytest.raises(DataError, match="no such file or folder"):
        finetune.run(small("data.source=nope"), output=copy_of_run, overwrite=True, quiet=True)
    assert (small_run.directory / "model" / "model.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_run_stopped_by_a_signal_resumes_to_bit_identical_weights(small_run, tmp_path, number):
    command = [sys.executable, "-m", "finetune.cli", "run", str(SMALL), "--output", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (tmp_path / "run" / "state").is_dir() and any(int(p.name) > 1 for p in complete(tmp_path / "run" / "state")):
            os.kill(process.pid, number)
            break
        time.sleep(0.005)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 128 + number, message
    assert "continue with --resume" in message
    assert "Traceback" not in message
    resumed = finetune.run(small(), output=tmp_path / "run", resume=True, quiet=True).summary
    assert resumed["weights_sha256"] == small_run.summary["weights_sha256"]
    assert [r["accuracy"] for r in resumed["results"]] == [r["accuracy"] for r in small_run.summary["results"]]
    assert resumed["verdict"] == small_run.summary["verdict"]
    ours, theirs = ((d / "metrics.jsonl").read_text().splitlines() for d in (tmp_path / "run", small_run.directory))
    steps = [[(r["stage"], r.get("step")) for r in map(json.loads, lines)] for lines in (ours, theirs)]
    assert set(steps[0]) >= set(steps[1])


def complete(state):
    return [p for p in state.iterdir() if p.name.isdigit()]


@pytest.mark.slow
def test_a_half_written_state_does_not_stand_in_the_way(small_run, tmp_path):
    output = shutil.copytree(small_run.directory, tmp_path / "run")
    (output / "summary.json").unlink()
    (output / "state" / "7.orbax-checkpoint-tmp-1").mkdir()
    resumed = finetune.run(small(), output=output, resume=True, quiet=True).summary
    assert resumed["results"] == small_run.summary["results"]


@pytest.mark.slow
def test_a_damaged_newest_state_is_named_and_the_one_before_it_is_used(small_run, tmp_path, capsys):
    output = shutil.copytree(small_run.directory, tmp_path / "run")
    (output / "summary.json").unlink()
    newest = max(complete(output / "state"), key=lambda path: int(path.name))
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    resumed = finetune.run(small(), output=output, resume=True).summary
    assert f"{newest}: cannot be restored: " in capsys.readouterr().err
    assert resumed["weights_sha256"] == small_run.summary["weights_sha256"]
    for state in complete(output / "state"):
        shutil.rmtree(state / "manifest")
    (output / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="no state is whole: start anew with --overwrite"):
        finetune.run(small(), output=output, resume=True, quiet=True)


@pytest.mark.slow
def test_a_damaged_model_of_a_run_that_goes_on_is_made_again(small_run, tmp_path, capsys):
    output = shutil.copytree(small_run.directory, tmp_path / "run")
    (output / "summary.json").unlink()
    weights = max((output / "model" / "weights").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    resumed = finetune.run(small(), output=output, resume=True).summary
    assert "it is made again" in capsys.readouterr().err
    assert resumed["weights_sha256"] == small_run.summary["weights_sha256"]
    assert resumed["results"] == small_run.summary["results"]


def test_a_class_count_that_contradicts_the_data_stops_the_run_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match=r"head\.num_classes: 7, but digits has 10 classes"):
        finetune.run(small("head.num_classes=7"), output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_rule_that_leaves_parameters_uncovered_stops_the_run_early(tmp_path):
    with pytest.raises(PartitionError, match="parameters match no rule, such as backbone/"):
        finetune.run(small("~stages.1.partitions.2"), output=tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.1.partitions.0.schedule={name: cosine, warmup: {steps: 500}}", "a warm-up of 500 steps in a stage of"),
        ("stages.1.loss={name: focal, class_weights: [1.0, 2.0]}", "2 weights for 10 classes"),
        ("stages.1.partitions.1.lora={rank: 4}", "is not the kernel of a dense layer"),
        ("stages.1.partitions.0.match=blocks[7]", "the backbone has 4 blocks"),
    ],
)
def test_what_cannot_work_in_a_later_stage_is_told_before_anything_is_written(tmp_path, override, message):
    with pytest.raises(FinetuneError, match=message):
        finetune.run(small(override), output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_of_images_trains_and_its_model_knows_the_class_names(tmp_path):
    rng = np.random.default_rng(0)
    for name, colour in (("no", (200, 30, 30)), ("yes", (30, 30, 200))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            noise = rng.integers(-25, 25, (20 + i, 30, 3))
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(
                tmp_path / "data" / name / f"{i}.png"
            )
    overrides = [f"data={{source: {tmp_path / 'data'}, test: 0.25, validation: 0}}", "head={}", "~stages.1"]
    result = finetune.run(small(*overrides), output=tmp_path / "run", quiet=True)
    assert result.predictor().class_names == ("no", "yes")
    assert result.summary["results"][-1]["accuracy"] == 1.0
    assert result.predictor().predict([tmp_path / "data" / "yes" / "3.png"])[0].label == "yes"


TWO_STAGES = """
name: two
backbone: {source: "builtin:tiny-clip"}
data: {source: digits, shots_per_class: 5, validation: 0, test: 0.1}
stages:
  - name: first
    epochs: 2
    batch_size: 25
    partitions:
      - {match: head, learning_rate: 1.0e-3}
      - {match: backbone, frozen: true}
  - name: second
    epochs: 4
    batch_size: 25
    carry_optimizer_state: true
    ema_decay: 0.8
    partitions:
      - {match: head, learning_rate: 1.0e-3, schedule: {name: cosine, warmup: {epochs: 1}}}
      - {match: "backbone/encoder/.*/q_proj/kernel", name: adapters, learning_rate: 1.0e-2, lora: {rank: 2, dora: true}}
      - {match: ".*", frozen: true}
"""


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """(recipe, its run)."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "two.yaml").write_text(TWO_STAGES)
    recipe = finetune.load_recipe(folder / "two.yaml")
    return recipe, finetune.run(recipe, output=folder / "run", quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 8])  # between the stages; within the second
def test_adapters_averages_and_carried_moments_resume_bit_for_bit(two_stages, tmp_path, monkeypatch, step):
    recipe, whole = two_stages
    records = [json.loads(line) for line in (whole.directory / "metrics.jsonl").read_text().splitlines()]
    assert {"stage": "second", "step": 0, "carried_optimizer_state": ["head"]} in records

    save = RunCheckpoints.save

    def save_then_stop(self, number, *args, **kwargs):
        save(self, number, *args, **kwargs)
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunCheckpoints, "save", save_then_stop)
    with pytest.raises(Interrupted, match="continue with --resume"):
        finetune.run(recipe, output=tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    resumed = finetune.run(recipe, output=tmp_path / "cut", resume=True, quiet=True)
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert resumed.summary["weight_change"] == whole.summary["weight_change"]
    assert resumed.summary["layer_change"] == whole.summary["layer_change"]
    assert resumed.summary["frozen_unchanged"]


@pytest.mark.slow
def test_frozen_weights_held_in_bfloat16_are_saved_as_they_were(tmp_path, tiny_clip):
    recipe = small("~stages.0", "stages.0.epochs=1", "stages.0.frozen_dtype=bfloat16", "data.fraction=0.1")
    result = finetune.run(recipe, output=tmp_path / "run", quiet=True)
    assert result.summary["frozen_unchanged"]
    trained = flatten_dict(result.predictor().variables["params"]["backbone"], sep="/")
    for path, leaf in flatten_dict(tiny_clip.variables["params"], sep="/").items():
        assert path.startswith("encoder/layers/3/") or np.array_equal(leaf, trained[path]), path
