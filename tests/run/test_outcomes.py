"""How a run can end: a stage that makes things worse, one that no longer improves, numbers that are not finite."""

import json
import re

import numpy as np
import pytest
from command_line import finetune as command

import finetune
from finetune.errors import Diverged, RecipeError

RECIPE = """\
name: small
seed: 3
backbone: {module: "finetune.models.lenet:LeNet", image: {size: 28, channels: 1}}
data: {source: digits, fraction: 0.2, validation: 0.2, test: 0.1}
stages:
  - {name: probe, type: linear_probe, l2: 1.0}
  - name: finetune
    epochs: 3
    batch_size: 32
    partitions:
      - {match: "head/.*", learning_rate: 1.0e-3}
      - {match: "backbone/.*", name: body, optimizer: sgd, learning_rate: 1.0e-3}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def small(file):
    """``small(*overrides)``: a recipe of a probe and a training stage."""
    return lambda *overrides: finetune.load_recipe(file, overrides)


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory):
    return finetune.run(finetune.load_recipe(file), output=tmp_path_factory.mktemp("finished") / "run", quiet=True)


def strict_json(path):
    def refuse(constant):
        raise ValueError(constant)

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def diverged(file, tmp_path_factory):
    """(what the command line said, the run's folder)."""
    folder = tmp_path_factory.mktemp("diverged") / "run"
    return command("run", file, "stages.1.partitions.1.learning_rate=1e30", "--output", folder), folder


def test_a_run_that_diverges_ends_with_code_3_and_names_stage_step_partition_and_cause(diverged):
    result, _ = diverged
    assert result.returncode == 3
    assert "Traceback" not in result.stderr
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(r"stage 'finetune' diverged at step \d+ of 24: .*gradients are not finite in partition ", message)
    assert "the learning rate of body is likely too high" in message
    assert "lower it" in message
    assert "the model of probe is kept" in message


def test_what_diverged_leaves_valid_json_and_the_earlier_stages_model(diverged, finished):
    _, folder = diverged
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "diverged"
    assert summary["kept"] == {"stage": "probe"}
    records = strict_json(folder / "metrics.jsonl")
    assert any("diverged" in record for record in records)
    probe = finetune.restore(folder)
    assert all(np.isfinite(leaf).all() for leaf in probe.variables["params"]["head"].values())
    (earlier,) = [r for r in finished.summary["results"] if r["name"] == "probe"]
    assert finetune.evaluate_run(folder)["accuracy"] == earlier["accuracy"]


def test_what_diverged_has_a_page_that_says_so_and_shows_the_steps_before(diverged, finished):
    _, folder = diverged
    text = (folder / "report.html").read_text()
    assert "Diverged; the run is not finished." in text
    assert "the learning rate of body is likely too high" in text
    (probe,) = [r for r in finished.summary["results"] if r["name"] == "probe"]
    assert f"<td>probe (kept)</td><td>{probe['accuracy']:.1%}</td>" in text


def test_a_first_stage_that_diverges_in_its_first_epoch_leaves_no_model(small, tmp_path):
    overrides = ["~stages.0", "stages.0.partitions.0.learning_rate=1e30"]
    overrides.append("stages.0.partitions.0.optimizer=sgd")
    with pytest.raises(Diverged, match="no earlier stage has left a model"):
        finetune.run(small(*overrides), output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
def test_the_best_of_a_stage_that_diverges_is_measured_and_calibrated_before_it_is_kept(tmp_path):
    rule = {"match": "head", "learning_rate": 1e38, "optimizer": "sgd"}
    rule["schedule"] = {"name": "constant", "warmup": {"steps": 2}, "warmup_init_factor": 0.0}
    recipe = {
        "name": "diverging",
        "backbone": {"source": "builtin:tiny-clip"},
        "head": {"init": "zero_shot"},
        "data": {"source": "digits", "fraction": 0.2, "validation": 0.2, "test": 0.2},
        "stages": [
            {"name": "body", "epochs": 3, "batch_size": 230, "partitions": [rule, {"match": ".*", "frozen": True}]}
        ],
    }
    with pytest.raises(Diverged, match="the model of body is kept"):
        finetune.run(finetune.Recipe.model_validate(recipe), output=tmp_path / "run", quiet=True)
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert [result["name"] for result in results] == ["zero_shot", "body"]
    assert results[0]["accuracy"] == results[1]["accuracy"]  # the first step's learning rate is 0
    assert finetune.restore(tmp_path / "run").confidence is not None


@pytest.mark.slow
def test_a_stage_that_is_worse_on_validation_does_not_replace_an_earlier_one(small, tmp_path, capsys):
    recipe = small("stages.1.epochs=1", "stages.1.partitions.0.learning_rate=3")
    result = finetune.run(recipe, output=tmp_path / "run")
    probe, worse, _ = result.summary["results"]
    assert worse["accuracy"] < probe["accuracy"]
    assert result.summary["interpolation"]["best"] < 1
    assert result.summary["kept"]["stage"] == "probe"
    said = capsys.readouterr().err
    assert "finetune: worse on the validation images than probe" in said
    assert finetune.evaluate_run(result.directory)["accuracy"] == probe["accuracy"]
    (compared,) = finetune.compare_runs([result.directory])
    assert compared["results"]["name"] == "probe"


@pytest.mark.slow
def test_a_stage_ends_where_it_has_not_improved_for_the_patience(small, tmp_path, capsys):
    stopping = "stages.1.early_stopping={patience: 2, metric: loss, min_delta: 10}"
    result = finetune.run(small("stages.1.epochs=9", stopping), output=tmp_path / "run")
    records = [r for r in strict_json(result.directory / "metrics.jsonl") if r["stage"] == "finetune"]
    assert [r["epoch"] for r in records if r["split"] == "validation"] == [1, 2, 3]
    assert "stopped after 3/9: no improvement on validation in 2 epochs" in capsys.readouterr().err


@pytest.mark.slow
def test_the_metric_that_chooses_is_the_recipes(small, tmp_path):
    result = finetune.run(
        small("evaluate.metric=loss", "evaluate.interpolation=off"), output=tmp_path / "run", quiet=True
    )
    records = strict_json(result.directory / "metrics.jsonl")
    losses = [r["loss"] for r in records if r["stage"] == "finetune" and r["split"] == "validation"]
    (probe,) = [r["loss"] for r in records if r["stage"] == "probe" and r["split"] == "validation"]
    kept = result.summary["kept"]
    assert kept["metric"] == "loss"
    assert kept["validation"] == pytest.approx(min(probe, *losses), rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.validation=0", "stages.1.early_stopping={patience: 1}"], "no validation images to improve on"),
        (["data.validation=0", "evaluate.metric=loss"], "no effect without validation images"),
        (["evaluate.metric=mean_average_precision"], "for images with several labels"),
    ],
)
def test_what_needs_validation_images_says_so(small, tmp_path, overrides, message):
    with pytest.raises(RecipeError, match=message):
        finetune.run(small(*overrides), output=tmp_path / "run", quiet=True)


def test_every_epoch_is_a_line_with_losses_metric_rate_speed_and_time(finished):
    records = [r for r in strict_json(finished.directory / "metrics.jsonl") if r["split"] == "epoch"]
    assert [r["epoch"] for r in records] == [1, 2, 3]
    assert any(r["best"] for r in records)
    for record in records:
        assert record["metric"] == "accuracy"
        assert 0 <= record["validation"] <= 1
        assert min(record[name] for name in ("train_loss", "validation_loss", "highest_learning_rate", "seconds")) > 0
        assert record["seconds_left"] >= 0


def test_the_curves_are_drawn_after_the_run(finished):
    assert (finished.directory / "figures" / "curves.png").read_bytes()[:4] == b"\x89PNG"
