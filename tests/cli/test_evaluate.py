import json

from command_line import clean_failure, finetune, read_table


def test_evaluate_repeats_the_accuracy_of_the_run(small_run):
    measured = json.loads(finetune("evaluate", small_run.directory, "--json").stdout)
    result = small_run.summary["results"][-1]
    assert (measured["n"], measured["accuracy"]) == (result["n"], result["accuracy"])
    assert measured["metric"] == "accuracy"


def test_evaluate_shows_the_metric_that_decides(small_run, multi_label_run):
    _, directory = multi_label_run
    (result,) = json.loads((directory / "summary.json").read_text())["results"]
    (row,) = read_table(finetune("evaluate", directory).stdout)
    assert list(row) == ["test images", "mean average precision", "loss"]
    assert row["mean average precision"] == f"{result['mean_average_precision']:.4f}"
    (row,) = read_table(finetune("evaluate", small_run.directory).stdout)
    assert list(row) == ["test images", "accuracy", "loss"]


def test_evaluate_of_a_folder_that_is_missing_names_it(tmp_path):
    clean_failure(finetune("evaluate", tmp_path / "none"), "none: no such folder")
