import json
import shutil

import pytest
from PIL import Image

from finetune.errors import CheckpointError
from finetune.folder.run_folder import RunFolder
from finetune.report.compare import compare_runs
from finetune.run.curves import draw_curves


def test_a_run_is_described_by_its_results_its_speed_and_its_curves(small_run):
    (run,) = compare_runs([small_run.directory])
    records = [json.loads(line) for line in (small_run.directory / "metrics.jsonl").read_text().splitlines()]
    assert run["name"] == small_run.directory.name
    assert run["results"]["name"] == small_run.summary["kept"]["stage"]
    losses = [[r["epoch"], r["loss"]] for r in records if r.get("split") == "train" and "loss" in r]
    accuracies = [r["accuracy"] for r in records if r.get("split") == "validation" and "epoch" in r]
    assert run["curves"]["train_loss"] == losses
    assert run["curves"]["validation_accuracy"] == [[1.0 + i, a] for i, a in enumerate(accuracies)]
    assert len(accuracies) == 3
    assert run["images_per_second"] > 0


def test_epochs_are_counted_over_all_stages(small_run, tmp_path):
    folder = tmp_path / "two"
    shutil.copytree(small_run.directory, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    again = [line.replace('"stage": "finetune"', '"stage": "more"') for line in lines if '"finetune"' in line]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, *again]) + "\n")
    RunFolder(folder).write_summary(small_run.summary)
    (run,) = compare_runs([folder])
    assert [epoch for epoch, _ in run["curves"]["validation_accuracy"]] == [1, 2, 3, 4, 5, 6]


def test_curves_become_a_figure(small_run, tmp_path):
    draw_curves(compare_runs([small_run.directory, small_run.directory]), tmp_path / "new" / "curves.png")
    with Image.open(tmp_path / "new" / "curves.png") as figure:
        assert len(figure.convert("RGB").getcolors(1 << 20)) > 10
    with pytest.raises(CheckpointError, match=r"curves\.doc.*not supported"):
        draw_curves(compare_runs([small_run.directory]), tmp_path / "curves.doc")


def test_runs_of_different_metrics_get_a_panel_for_each_metric(small_run, tmp_path):
    runs = compare_runs([small_run.directory, small_run.directory])
    runs[1]["results"] = runs[1]["results"] | {"metric": "mean_average_precision"}
    runs[1]["curves"]["validation_mean_average_precision"] = runs[1]["curves"].pop("validation_accuracy")
    draw_curves(runs[:1], tmp_path / "one.png")
    draw_curves(runs, tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.width == one.width * 4 // 3


def test_a_folder_without_a_finished_run_is_named(small_run, tmp_path):
    with pytest.raises(CheckpointError, match="not a run's folder"):
        compare_runs([small_run.directory, tmp_path])
    unfinished = tmp_path / "unfinished"
    shutil.copytree(small_run.directory, unfinished)
    (unfinished / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="an unfinished run"):
        compare_runs([unfinished])
