"""Dive into Deep Learning's chapter on batch normalization: LeNet on Fashion-MNIST, with and without it."""

import json
import subprocess
import sys

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import finetune
from finetune.models.lenet import LeNet
from finetune.report.compare import compare_runs

RECIPES = ("lenet", "lenet_batchnorm")
CONSTANT = "stages.0.partitions.0.schedule=constant"


@pytest.fixture(scope="module")
def fashion(shared):
    folder = shared / "data" / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip("needs Fashion-MNIST's parquet files")
    return folder


def test_it_is_the_chapters_network():
    for norm, values in ((False, 61706), (True, 61706 + 2 * (6 + 16 + 120 + 84))):
        variables = jax.eval_shape(LeNet(norm=norm).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == values
        assert ("batch_stats" in variables) == norm


def test_the_recipes_differ_in_batch_normalization_alone():
    plain, normed = (finetune.load_recipe(name).model_dump() for name in RECIPES)
    assert (plain["name"], normed["name"]) == RECIPES
    assert (plain["backbone"]["kwargs"]["norm"], normed["backbone"]["kwargs"]["norm"]) == (False, True)
    plain["name"] = normed["name"]
    plain["backbone"]["kwargs"]["norm"] = True
    assert plain == normed


@pytest.mark.slow
def test_batch_normalization_learns_where_the_plain_network_has_not_begun_to(fashion, tmp_path):
    """Two epochs on a twentieth of the images at a learning rate of 1."""
    files = {split: str(fashion / f"{split}-00000-of-00001.parquet") for split in ("train", "test")}
    images = {split: datasets.load_dataset("parquet", data_files=files, split=f"{split}[:5%]") for split in files}
    overrides = ["data.source=memory", "stages.0.epochs=2", "stages.0.batch_size=32", CONSTANT]
    for name in RECIPES:
        finetune.run(finetune.load_recipe(name, overrides), output=tmp_path / name, quiet=True, data=images)
    plain, normed = compare_runs([tmp_path / name for name in RECIPES])
    assert normed["results"]["accuracy"] > 0.7
    assert normed["results"]["accuracy"] > plain["results"]["accuracy"] + 0.1
    assert normed["curves"]["train_loss"][-1][1] < plain["curves"]["train_loss"][-1][1]
    variables = finetune.restore(tmp_path / "lenet_batchnorm").variables
    first = variables["params"]["backbone"]["norm1"]
    assert np.abs(first["scale"] - 1).max() > 0.05
    assert np.abs(first["bias"]).max() > 0.05


@pytest.mark.long
def test_the_recipe_reaches_its_figure_in_half_its_epochs(fashion, tmp_path):
    command = [sys.executable, "-m", "finetune.cli", "run", "lenet_batchnorm", f"data.source={fashion}"]
    command += ["stages.0.epochs=5", "--output", str(tmp_path / "run")]
    subprocess.run(command, capture_output=True, check=True)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["results"][-1]["accuracy"] >= 0.88
