import json
import shutil

import numpy as np
import pytest

from finetune.data.labeled_images import Split
from finetune.errors import CheckpointError
from finetune.folder.run_folder import FINISHED
from finetune.report.paired import KeptPredictions
from finetune.run.predictions import Predictions

LABELS = np.arange(40) % 2


@pytest.fixture
def run_of(tmp_path):
    """``run_of(name, wrong, labels, classes)``: the folder of a run that is wrong about so many images."""

    def make(name, wrong, labels=LABELS, classes=("a", "b")):
        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"status": FINISHED, "kept": {"stage": "s"}}))
        (folder / "model" / "model.json").write_text(json.dumps({"class_names": classes}))
        answers = np.where(np.arange(len(labels)) < wrong, 1 - labels, labels)
        split = Split(np.zeros((len(labels), 2, 2), np.uint8), labels)
        Predictions(folder / "predictions.parquet", split).add("s", np.eye(2, dtype=np.float32)[answers], [])
        return folder

    return make


def test_each_pair_on_the_same_images_is_tested_and_p_values_are_adjusted(run_of):
    pairs = KeptPredictions([run_of("a", 10), run_of("b", 9), run_of("c", 0)]).paired()
    assert [(pair.first, pair.second, pair.test.gained, pair.test.lost) for pair in pairs] == [
        (0, 1, 1, 0),
        (0, 2, 10, 0),
        (1, 2, 9, 0),
    ]
    assert [pair.test.p_value for pair in pairs] == pytest.approx([1.0, 2 / 2**10, 2 / 2**9])
    assert [pair.adjusted for pair in pairs] == pytest.approx([1.0, 3 * 2 / 2**10, 2 * 2 / 2**9])
    assert pairs[1].points == 25.0


def test_an_adjusted_p_value_is_never_below_one_of_a_smaller_p_value(run_of):
    pairs = KeptPredictions([run_of("a", 6), run_of("b", 0), run_of("c", 0)]).paired()
    assert [pair.adjusted for pair in pairs] == pytest.approx([3 * 2 / 2**6, 3 * 2 / 2**6, 1.0])


def test_runs_that_do_not_compare_say_why(run_of):
    first = run_of("a", 1)
    lost = run_of("e", 1)
    (lost / "predictions.parquet").unlink()
    others = [run_of("b", 1, LABELS[:30]), run_of("c", 1, 1 - LABELS), run_of("d", 1, classes=("a", "c")), lost]
    kept = KeptPredictions([first, *others])
    assert [kept.problem(0, i) for i in range(1, 5)] == [
        "other test images",
        "other labels of the test images",
        "other classes",
        "no predictions of the kept step",
    ]
    assert all(pair.test is None for pair in kept.paired())
    assert kept.by_class() == ([], [])


def test_classes_are_compared_the_most_different_first(run_of):
    odd = np.ones(40, int)
    odd[0] = 0
    runs, records = KeptPredictions([run_of("a", 2, odd), run_of("b", 1, 1 - odd), run_of("c", 0, odd)]).by_class()
    assert runs == [0, 2]
    assert [record["name"] for record in records] == ["a", "b"]
    assert records[0]["values"] == [0.0, 1.0]
    assert records[0]["images"] == 1
    assert records[1]["spread"] == pytest.approx(1 / 39)


def test_a_run_that_is_not_finished_is_named(run_of):
    folder = run_of("a", 1)
    shutil.rmtree(folder / "model")
    (folder / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="not a finished run"):
        KeptPredictions([folder])
