import json

import numpy as np
import pytest
from command_line import clean_failure, finetune, in_a_process
from PIL import Image


def test_predict_prints_labels_and_json(small_run, tmp_path):
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(tmp_path / "a.png")
    text = finetune("predict", small_run.directory, tmp_path / "a.png", columns=300)
    assert text.returncode == 0
    assert "a.png" in text.stdout
    records = json.loads(in_a_process("predict", small_run.directory, "a.png", "a.png", "--json", cwd=tmp_path).stdout)
    assert [record["image"] for record in records] == ["a.png", "a.png"]
    assert sum(records[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert records[0]["label"] == max(records[0]["probabilities"], key=records[0]["probabilities"].get)


def test_predict_with_bad_input_names_it(small_run, tmp_path):
    clean_failure(finetune("predict", tmp_path, "x.png"), "no run and no model bundle")
    clean_failure(finetune("predict", small_run.directory, "x.png", cwd=tmp_path), "x.png: no such file")
