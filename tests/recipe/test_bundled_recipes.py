import json
import subprocess
import sys

import numpy as np
import pytest

import finetune
from finetune import resources


@pytest.mark.parametrize("name", sorted(resources.recipes()))
def test_every_bundled_recipe_says_what_it_is_for_and_how_it_is_run(name):
    header = resources.recipes()[name].read_text(encoding="utf-8")
    assert "# Purpose: " in header
    assert f"# Command: finetune run {name}" in header
    assert "# Expect:" in header
    assert finetune.load_recipe(name).name == name


PUBLISHED = {  # recipe -> a small checkpoint of the same family
    "ft_clip_b16_imagenet": "clip-quick-gelu",
    "wise_ft_b32": "clip-quick-gelu",
    "lp_plus_plus_16shot": "clip-quick-gelu",
    "tip_adapter_16shot": "clip-quick-gelu",
    "dinov2_linear": "dinov2",
    "dinov3_linear": "timm-dinov3",
    "vit_cifar10": "vit",
    "vtab1k_lora": "vit",
    "mobilenetv3_edge": "timm-mobilenetv3-small",
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_recipe_says_figure_paper_data_and_what_differs(name):
    header = resources.recipes()[name].read_text(encoding="utf-8")
    words = " ".join(header.replace("\n#", " ").split())
    for part in ("Data: ", "Differs: ", "not run here", "as published", "arXiv:"):
        assert part in words


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_partitions_of_a_published_recipe_cover_its_family(goldens, name):
    recipe = finetune.load_recipe(name, [f"backbone.source={goldens / PUBLISHED[name]}"])
    result = finetune.validate_recipe(recipe)
    assert result["unchecked"] is None
    for stage in result["stages"]:
        assert all(partition["parameters"] > 0 for partition in stage["partitions"])


@pytest.mark.slow
def test_quickstart_reaches_its_figures_from_any_folder(tmp_path):
    command = [sys.executable, "-m", "finetune.cli", "run", "quickstart"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    summary = json.loads((tmp_path / "checkpoints" / "quickstart" / "summary.json").read_text())
    accuracy = {result["name"]: result["accuracy"] for result in summary["results"]}
    assert list(accuracy) == ["zero_shot", "probe", "finetune"]
    assert accuracy["zero_shot"] >= 0.93
    assert accuracy["finetune"] >= 0.96
    assert accuracy["finetune"] > raw_pixels() + 0.03
    assert all(f"{value:.4f}" in out for value in accuracy.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("gradual_unfreezing", 0.97), ("lora", 0.965)])
def test_a_recipe_reaches_what_its_header_says(tmp_path, name, least):
    summary = finetune.run(finetune.load_recipe(name), output=tmp_path / "run", quiet=True).summary
    accuracies = [result["accuracy"] for result in summary["results"]]
    assert accuracies[0] >= 0.94
    assert accuracies[-1] >= least
    assert summary["frozen_unchanged"]


def raw_pixels():
    from sklearn.linear_model import LogisticRegression

    from finetune.data.splits import load_splits

    recipe = finetune.load_recipe("quickstart")
    splits = load_splits(recipe.data, recipe.seed)
    x, test = (np.asarray(s.images).reshape(len(s), -1) / 255 for s in (splits.train, splits.test))
    models = [LogisticRegression(C=c, max_iter=5000).fit(x, splits.train.labels) for c in (0.1, 1.0, 10.0)]
    return max(model.score(test, splits.test.labels) for model in models)
