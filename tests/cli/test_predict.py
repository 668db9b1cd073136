import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from command_line import FINETUNE, clean_failure, finetune, in_a_process, read_table
from PIL import Image

from finetune.files import hash_json


def test_predict_prints_labels_and_json(small_run, tmp_path):
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(tmp_path / "a.png")
    text = finetune("predict", small_run.directory, tmp_path / "a.png", columns=300)
    assert text.returncode == 0
    assert "a.png" in text.stdout
    records = json.loads(in_a_process("predict", small_run.directory, "a.png", "a.png", "--json", cwd=tmp_path).stdout)
    assert [record["image"] for record in records] == ["a.png", "a.png"]
    assert sum(records[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert records[0]["label"] == max(records[0]["probabilities"], key=records[0]["probabilities"].get)


def test_predict_shows_the_sets_of_a_coverage_and_what_they_guarantee(small_run, tmp_path):
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(tmp_path / "a.png")
    text = finetune("predict", small_run.directory, tmp_path / "a.png", "--coverage", "0.9", columns=300)
    assert text.returncode == 0, text.stderr
    assert "sets of 0.9, for images like the 65 validation images" in text.stdout
    (record,) = json.loads(
        finetune("predict", small_run.directory, tmp_path / "a.png", "--coverage", "0.99", "--json").stdout
    )
    assert len(record["set"]) == 10  # 65 images are too few for that
    assert record["unknown"] in (True, False)
    assert record["accepted"] is None
    assert record["confidence"] == max(record["probabilities"].values())


@pytest.mark.parametrize("options", [("--coverage", "90"), ("--coverage", "0.9", "--top", "2")])
def test_predict_refuses_a_coverage_that_makes_no_sense(small_run, options):
    clean_failure(finetune("predict", small_run.directory, "x.png", *options), "--coverage")


def test_predict_answers_where_it_is_sure_enough(small_run, tmp_path):
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(tmp_path / "a.png")
    text = finetune("predict", small_run.directory, tmp_path / "a.png", "--max-error", "0.2", columns=300)
    assert text.returncode == 0, text.stderr
    assert "at most 0.2 of them wrong (90% certainty), for images like the 65 validation images" in text.stdout
    never = finetune("predict", small_run.directory, tmp_path / "a.png", "--max-error", "0.001")
    assert "no answer is sure enough for an error of 0.001: 65 validation images" in never.stdout
    assert "(not sure enough)" in never.stdout
    clean_failure(finetune("predict", small_run.directory, "x.png", "--max-error", "20"), "--max-error: a share")


def test_predict_with_bad_input_names_it(small_run, tmp_path):
    clean_failure(finetune("predict", tmp_path, "x.png"), "no run and no model bundle")
    clean_failure(finetune("predict", small_run.directory, "x.png", cwd=tmp_path), "x.png: no such file")
    url = "https://example.org/a//b.png"
    clean_failure(finetune("predict", small_run.directory, url), f"{url}: a URL", "download it")


@pytest.fixture
def images(tmp_path):
    """Three images, a broken one and notes."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/a.png", "in/b.png", "in/deep/c"):
        Image.new("RGB", (8, 8), "gray").save(tmp_path / name, "PNG")
    (tmp_path / "in" / "x.png").write_bytes(b"broken")
    (tmp_path / "in" / "notes.txt").write_text("about them")
    return tmp_path


def test_a_folder_is_all_images_inside_and_a_broken_one_does_not_stop_the_others(small_run, images):
    result = finetune("predict", small_run.directory, "in", "--csv", cwd=images)
    assert result.returncode == 2
    assert "error: in/x.png: not an image" in result.stderr
    assert "1 files that are no images are left out, such as in/notes.txt" in result.stderr
    rows = list(csv.reader(result.stdout.splitlines()))
    assert rows[0] == ["image", "label", "probability"]
    assert [row[0] for row in rows[1:]] == ["in/a.png", "in/b.png", "in/deep/c"]


def test_names_of_files_cannot_make_the_terminal_obey_or_write_lines_of_their_own(small_run, images):
    (images / "in" / "notes.txt").rename(images / "in" / "\x1b[2J\nnotes")
    (images / "in" / "x.png").rename(images / "in" / "\x1b[2J\nerror: x.png")
    (images / "in" / "a.png").rename(images / "in" / "\x1b[31m\na.png")
    result = finetune("predict", small_run.directory, "in", cwd=images)
    assert "\x1b" not in result.stdout + result.stderr
    assert r"such as in/\x1b[2J\nnotes: not an image" in result.stderr
    assert r"error: in/\x1b[2J\nerror: x.png: not an image" in result.stderr
    assert len(result.stderr.splitlines()) == 2
    assert r"in/\x1b[31m\na.png" in result.stdout


def test_patterns_and_a_list_on_stdin_are_files(small_run, images, monkeypatch):
    matched = finetune("predict", small_run.directory, "in/[ab].png", "--json", cwd=images)
    assert [record["image"] for record in json.loads(matched.stdout)] == ["in/a.png", "in/b.png"]
    (images / " a.png").write_bytes((images / "in" / "a.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.StringIO("in/b.png\n\n a.png\r\n"))
    listed = finetune("predict", small_run.directory, "-", "--json", cwd=images)
    assert [record["image"] for record in json.loads(listed.stdout)] == ["in/b.png", " a.png"]


def test_two_forms_of_output_are_refused(small_run, images):
    clean_failure(finetune("predict", small_run.directory, "in/a.png", "--csv", "--json", cwd=images), "give one of")


def test_the_most_probable_classes_are_shown_in_order(small_run, images):
    rows = read_table(finetune("predict", small_run.directory, "in/a.png", "--top", "3", cwd=images).stdout)
    values = [float(row["probability"]) for row in rows]
    assert len(values) == 3
    assert values == sorted(values, reverse=True)
    clean_failure(finetune("predict", small_run.directory, "in/a.png", "--top", "0", cwd=images), "--top")


@pytest.mark.slow
def test_names_in_any_script_are_printed_to_any_pipe(small_run, images):
    model = shutil.copytree(small_run.directory / "model", images / "model")
    about = json.loads((model / "model.json").read_text())
    about["class_names"] = [f"猫 \U0001f436 été {i}" for i in range(10)]
    del about["sha256"]
    (model / "model.json").write_text(json.dumps({**about, "sha256": hash_json(about)}))
    command = [*FINETUNE, "predict", "model", "in/a.png", "nope\u732b.png"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, cwd=images, capture_output=True, env=environment)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"no such file" in done.stderr
    assert "? ? été " in done.stdout.decode("cp1252")
