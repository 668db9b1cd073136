import json

import numpy as np
import pytest
from command_line import clean_failure, finetune
from PIL import Image

from finetune.cli.train import name_of


def test_the_runs_name_is_that_of_the_images(tmp_path):
    assert name_of("~/photos/flowers/") == "flowers"
    assert name_of("owner/flowers") == "flowers"
    assert name_of("Meine Bilder (2).csv") == "Meine-Bilder-2"
    assert name_of("/") == "train"


def test_a_missing_folder_is_named(tmp_path):
    clean_failure(finetune("train", "photoz", cwd=tmp_path), "photoz")


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_classifier_without_a_recipe(tmp_path):
    rng = np.random.default_rng(0)
    for name, bright in (("night", 30), ("noon", 180)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = (bright + rng.integers(0, 60, (40, 40, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    options = ("--backbone", "builtin:tiny-clip", "--minutes", "5")
    result = finetune("train", "photos", *options, cwd=tmp_path, columns=200)
    assert result.returncode == 0, result.stderr
    first, second, *_ = result.stdout.splitlines()
    assert first.startswith("28 training images of 2 classes, 14 of each; builtin:tiny-clip computes ")
    assert second.startswith("a linear probe, then the last quarter of the blocks for 20 epochs in batches of 8")
    folder = tmp_path / "checkpoints" / "photos"
    assert json.loads((folder / "summary.json").read_text())["results"][-1]["accuracy"] > 0.9
    again = finetune("validate", folder / "recipe.yaml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    clean_failure(finetune("train", "photos", *options, cwd=tmp_path), "already holds a run", "finetune resume")
