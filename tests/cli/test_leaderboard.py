import json

import pytest
from command_line import clean_failure, finetune, read_table


@pytest.mark.slow  # tests/report/test_leaderboard.py measures the same
def test_leaderboard_prints_one_row_for_each_pair_and_how_to_go_on(tmp_path):
    arguments = ["digits", "data.fraction=0.2", "--heads", "knn", "--output", tmp_path / "board"]
    shown = finetune("leaderboard", *arguments)
    assert shown.returncode == 0, shown.stderr
    rows = read_table(shown.stdout)
    assert {row["head"] for row in rows} == {"knn"}
    assert {row["backbone"] for row in rows} == {"builtin:tiny-clip"}
    assert f"go on with the first: finetune run {tmp_path / 'board' / 'best.yaml'}" in shown.stdout
    again = finetune("leaderboard", *arguments, "--json")
    assert json.loads(again.stdout)["metric"] == "accuracy"
    assert "are reused" in again.stderr


def test_a_head_that_is_none_is_named():
    clean_failure(finetune("leaderboard", "digits", "--heads", "svm"), "heads: 'svm' is none", "linear_probe")
