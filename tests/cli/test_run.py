import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from command_line import FINETUNE, RECIPE, clean_failure, finetune, in_a_process, read_table
from PIL import Image


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path / "r.yaml"


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_valid_one(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.replace("learning", "learing"), encoding="utf-8")
    clean_failure(
        in_a_process("run", "r.yaml", cwd=tmp_path), "r.yaml:7", "learing_rate", "did you mean 'learning_rate'?"
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.0.steps=many", ["stages.0.steps", "integer", "'many'"]),
        ("backbone.source=builtin:none", ["no such bundled checkpoint", "tiny-clip"]),
        ("backbone.source=/nowhere/at/all", ["/nowhere/at/all", "no such folder"]),
        ("data.source=digit", ["no such file or folder", "did you mean 'digits'?"]),
        ("head.num_classes=3", ["head.num_classes: 3", "10 classes"]),
        ("stages.0.batch_size=100000", ["batch_size: 100000"]),
        ("stages.0.partitions.0.match=head", ["match no rule", "backbone/"]),
        ("stages.0.partitions.0.match=(", ["not a regular expression"]),
    ],
)
def test_bad_values_end_with_one_message_and_exit_code_2(recipe, override, words):
    clean_failure(finetune("run", recipe, override, cwd=recipe.parent), *words)


def test_a_checkpoint_of_an_unknown_family_is_refused_with_what_is_supported(recipe, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "flava"}')
    clean_failure(finetune("run", recipe, f"backbone.source={tmp_path}"), "'flava' is not supported", "clip", "dinov2")
    (tmp_path / "config.json").write_text('{"architecture": "resnet50_gn"}')
    clean_failure(finetune("inspect", tmp_path), "architecture 'resnet50_gn' is not supported", "convnext_*")


def test_a_module_of_your_own_is_imported_only_with_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setitem(sys.modules, "mine", None)
    (tmp_path / "mine.py").write_text("from finetune.models.lenet import LeNet\n\n\nclass Mine(LeNet): ...\n")
    (tmp_path / "mine.yaml").write_text(
        """
        backbone: {module: "mine:Mine", image: {size: 28, channels: 1}}
        head: {init: none}
        data: {source: digits, shots_per_class: 10, test: 0.1}
        stages: [{steps: 2, batch_size: 16, partitions: [{match: ".*", learning_rate: 0.1}]}]
        """
    )
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(tmp_path / "a.png")
    for command in (["run", "mine.yaml"], ["predict", "checkpoints/mine", "a.png"]):
        clean_failure(finetune(*command, cwd=tmp_path), "mine:Mine: code from outside", "--allow-local-code")
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        assert finetune(*command, "--allow-local-code", cwd=tmp_path).returncode == 0


def test_a_tensor_of_the_wrong_shape_is_named(recipe, goldens, tmp_path):
    shutil.copytree(goldens / "clip-quick-gelu", tmp_path / "bad")
    config = json.loads((tmp_path / "bad" / "config.json").read_text())
    config["vision_config"]["intermediate_size"] = 96
    (tmp_path / "bad" / "config.json").chmod(0o644)
    (tmp_path / "bad" / "config.json").write_text(json.dumps(config))
    result = finetune("run", recipe, f"backbone.source={tmp_path / 'bad'}")
    clean_failure(result, "vision_model.encoder.layers.0.mlp.fc1.weight", "(64, 128) given, (64, 96) needed")


def test_an_image_that_is_not_an_image_is_named_before_training(recipe, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "data" / "b" / "3.png").write_bytes(b"no picture at all")
    clean_failure(finetune("run", recipe, f"data.source={tmp_path / 'data'}"), "3.png: not an image")


def test_a_recipe_that_is_missing_is_an_error_that_lists_the_bundled_ones(tmp_path):
    clean_failure(finetune("run", "quikstart", cwd=tmp_path), "did you mean 'quickstart'?", "clip_vit_b32")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash to limit the size of files")
def test_a_disk_that_takes_no_more_is_one_message(recipe, tmp_path):
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "limited"]  # KiB in a file: LeNet has more
    lenet = "backbone={module: 'finetune.models.lenet:LeNet', image: {size: 28, channels: 1}}"
    command = [*limited, *FINETUNE, "run", str(recipe), lenet, "head={init: none}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    clean_failure(result, "cannot save", "make room")


def test_results_are_shown_by_the_metric_that_decides(multi_label_run):
    result, directory = multi_label_run
    assert result.returncode == 0, result.stderr
    (record,) = json.loads((directory / "summary.json").read_text())["results"]
    assert record["metric"] == "mean_average_precision"
    assert 0 <= record["accuracy"] != record["mean_average_precision"] <= 1
    (row,) = read_table(result.stdout)
    assert list(row) == ["result", "test images", "mean average precision", "macro F1", "loss"]
    assert row["mean average precision"] == f"{record['mean_average_precision']:.4f}"


def test_the_page_of_images_with_several_labels_has_their_forms_or_says_that_there_is_none(multi_label_run):
    result, directory = multi_label_run
    assert "report: run/report.html" in result.stdout.splitlines()
    text = (directory / "report.html").read_text()
    for words in (
        "average precision",
        "A confusion matrix has no form for images with several labels",
        "without a label",
    ):
        assert words in text
    assert "The expected calibration error has no form" in text
    assert '<pre tabindex="0">finetune run recipe.yaml --output run</pre>' in text
    assert "probability of a class" in text
