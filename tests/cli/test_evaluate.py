import json

import pytest
from command_line import clean_failure, finetune, read_table
from PIL import Image


def test_evaluate_repeats_the_accuracy_of_the_run(small_run):
    measured = json.loads(finetune("evaluate", small_run.directory, "--json").stdout)
    result = small_run.summary["results"][-1]
    assert (measured["n"], measured["accuracy"]) == (result["n"], result["accuracy"])
    assert measured["metric"] == "accuracy"


@pytest.mark.slow
def test_evaluate_shows_the_metric_that_decides(small_run, multi_label_run):
    _, directory = multi_label_run
    (result,) = json.loads((directory / "summary.json").read_text())["results"]
    (row,) = read_table(finetune("evaluate", directory).stdout)
    assert list(row) == ["split", "images", "mean average precision", "macro F1", "loss"]
    assert row["mean average precision"] == f"{result['mean_average_precision']:.4f}"
    text = finetune("evaluate", small_run.directory).stdout
    row = read_table(text)[0]
    assert list(row) == ["split", "images", "accuracy", "95% interval", "macro F1", "loss", "calibration error"]
    after = small_run.summary["calibration"]["test"]
    assert f"calibrated, as predict shows it: loss {after['loss_after']:.4f}" in text


def test_columns_of_another_table_can_be_named(small_run, tmp_path):
    for i in (3, 7):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "t.csv").write_text("file,kind,digit\n3.png,a,3\n7.png,b,7\n")
    command = ["evaluate", small_run.directory, "--data", tmp_path / "t.csv"]
    clean_failure(finetune(*command), "2 columns could be the label: kind, digit")
    (row,) = read_table(finetune(*command, "data.columns.label=digit").stdout)
    assert (row["split"], row["images"]) == ("all", "2")
    clean_failure(finetune(*command, "data.colums.label=digit"), "data.colums", "did you mean 'columns'?")
    clean_failure(finetune("evaluate", small_run.directory, "data.columns.label=digit"), "--data SOURCE")


def test_the_split_can_be_chosen_and_training_images_are_warned_of(small_run, multi_label_run):
    (row,) = read_table(finetune("evaluate", small_run.directory, "--split", "train").stdout)
    assert row["split"] == "train"
    assert "labels: " in finetune("evaluate", multi_label_run[1]).stdout
    clean_failure(finetune("evaluate", small_run.directory, "--split", "tests"), "tests")


def test_evaluate_of_a_folder_that_is_missing_names_it(tmp_path):
    clean_failure(finetune("evaluate", tmp_path / "none"), "none: no such folder")
