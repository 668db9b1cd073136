import json

import pytest
from command_line import clean_failure, finetune, read_table


def test_compare_sets_runs_side_by_side(small_run, tmp_path):
    files = ("--figure", "c.png", "--html", "side.html")
    shown = finetune("compare", small_run.directory, small_run.directory, *files, cwd=tmp_path).stdout
    rows = read_table(shown)
    accuracy = small_run.summary["results"][-1]["accuracy"]
    assert [row["test accuracy"] for row in rows] == [f"{accuracy:.4f}"] * 2
    assert "metrics" not in shown
    assert (tmp_path / "c.png").is_file()
    assert "Paired tests" in (tmp_path / "side.html").read_text()
    paired = read_table(shown[shown.index("paired test") :])
    assert [(row["gained"], row["lost"], row["p-value"]) for row in paired] == [("0", "0", "1")]


@pytest.mark.slow
def test_compare_has_a_column_for_each_metric_where_runs_differ(small_run, multi_label_run):
    _, directory = multi_label_run
    shown = finetune("compare", small_run.directory, directory).stdout
    single, several = read_table(shown)
    accuracy = small_run.summary["results"][-1]["accuracy"]
    (result,) = json.loads((directory / "summary.json").read_text())["results"]
    assert (single["test accuracy"], single["test mean average precision"]) == (f"{accuracy:.4f}", "")
    assert several["test accuracy"] == ""
    assert several["test mean average precision"] == f"{result['mean_average_precision']:.4f}"
    columns = ("best validation accuracy", "best validation mean average precision")
    assert [[row[column] != "" for column in columns] for row in (single, several)] == [[True, False], [False, True]]
    assert "the runs have different metrics (accuracy, mean average precision)" in shown
    assert f"{directory.name} and {small_run.directory.name}: no paired test: other classes" in shown


@pytest.mark.slow
def test_compare_gives_the_metric_and_its_curve_as_json(multi_label_run):
    _, directory = multi_label_run
    (run,) = json.loads(finetune("compare", directory, "--json").stdout)
    assert run["results"]["metric"] == "mean_average_precision"
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    scores = [record["mean_average_precision"] for record in records if record["split"] == "validation"]
    assert len(scores) == 2
    assert run["curves"]["validation_mean_average_precision"] == [[1.0, scores[0]], [2.0, scores[1]]]


def test_compare_with_bad_input_names_it(small_run, tmp_path):
    clean_failure(finetune("compare", tmp_path), f"{tmp_path}: not a run's folder")
    clean_failure(finetune("compare", small_run.directory, "--figure", "c.doc", cwd=tmp_path), "c.doc", "supported")
