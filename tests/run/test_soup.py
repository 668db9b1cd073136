"""A greedy soup: the mean of runs' weights, as long as that helps on validation images."""

import json

import numpy as np
import pytest
from command_line import finetune as command

import finetune
from finetune.data.splits import load_splits
from finetune.errors import CheckpointError
from finetune.folder.lock import FolderLock
from finetune.recipe import DataConfig
from finetune.trees import flatten

RECIPE = """\
name: lenet
seed: 3
backbone: {module: "finetune.models.lenet:LeNet", image: {size: 28, channels: 1}}
data: {source: digits, fraction: 0.5, validation: 0.3, test: 0.1}
evaluate: {interpolation: "off", unknown: knn}
stages:
  - {name: probe, type: linear_probe, l2: 1.0}
  - epochs: 1
    batch_size: 32
    partitions: [{match: ".*", learning_rate: 1.0e-3}]
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "lenet.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def runs(file, tmp_path_factory):
    """Folders of two runs from the same weights."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"first": [], "second": ["stages.1.partitions.0.learning_rate=5.0e-4"]}
    return {
        name: finetune.run(finetune.load_recipe(file, overrides), output=folder / name, quiet=True).directory
        for name, overrides in options.items()
    }


@pytest.fixture(scope="module")
def other(file, tmp_path_factory):
    """A run of another seed: from other weights, with other validation images."""
    recipe = finetune.load_recipe(file, ["seed=4"])
    return finetune.run(recipe, output=tmp_path_factory.mktemp("runs") / "other", quiet=True).directory


@pytest.fixture(scope="module")
def soup(runs, tmp_path_factory):
    return finetune.make_soup([runs["first"], runs["second"]], tmp_path_factory.mktemp("soup") / "soup")


def weights(directory):
    return flatten(finetune.restore(directory).variables)


@pytest.mark.slow
def test_the_soup_is_the_mean_of_its_members(runs, soup):
    members = [weights(name) for name in soup.summary["soup"]["members"]]
    assert len(members) == 2
    for path, leaf in weights(soup.directory).items():
        np.testing.assert_allclose(leaf, np.mean([m[path] for m in members], axis=0), atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_it_is_as_good_on_validation_as_its_best_member(soup):
    made = soup.summary["soup"]
    assert made["score"] >= max(made["validation"].values())
    assert made["validation"][made["members"][0]] == max(made["validation"].values())


@pytest.mark.slow
def test_it_is_measured_beside_its_ingredients_and_serves_as_a_run(runs, soup):
    names = [result["name"] for result in soup.summary["results"]]
    assert names[-1] == "soup"
    assert set(names[:-1]) == {str(runs["first"]), str(runs["second"])}
    assert soup.summary["results"][-1]["paired"]["before"] == soup.summary["soup"]["members"][0] == names[-2]
    again = finetune.evaluate_run(soup.directory)
    assert again["accuracy"] == soup.summary["results"][-1]["accuracy"]
    assert soup.predictor().confidence.novelty.kind == "knn"  # as the runs' recipe asks


@pytest.mark.slow
def test_what_makes_it_worse_is_left_out_and_no_image_is_used_that_a_run_was_trained_on(runs, other, file, tmp_path):
    done = command("soup", runs["first"], other, "--output", tmp_path / "soup")
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "soup" / "summary.json").read_text())["soup"]
    assert len(made["members"]) == len(made["left_out"]) == 1
    assert f"left out, as the soup is worse with them: {made['left_out'][0]}" in done.stdout
    ours, theirs = weights(tmp_path / "soup"), weights(made["members"][0])
    assert all((ours[path] == theirs[path]).all() for path in theirs)
    first, second = (load_splits(r.data, r.seed) for r in (finetune.load_recipe(file, s) for s in ((), ("seed=4",))))
    unseen = ~np.isin(first.validation.stats.pixel_hash, second.train.stats.pixel_hash)
    assert 0 < made["images"] == unseen.sum() < len(first.validation)


@pytest.mark.slow
def test_no_test_image_chooses_where_the_images_to_choose_on_hold_them(runs, file, tmp_path):
    soup = finetune.make_soup([runs["first"], runs["second"]], tmp_path / "soup", data="digits")
    recipe = finetune.load_recipe(file)
    splits = load_splits(recipe.data, recipe.seed)
    known = np.concatenate([splits.train.stats.pixel_hash, splits.test.stats.pixel_hash])
    every = load_splits(DataConfig(source="digits", validation=0.1), 0).named().values()
    unknown = sum(int((~np.isin(split.stats.pixel_hash, known)).sum()) for split in every)
    assert soup.summary["soup"]["images"] == unknown


@pytest.mark.slow
def test_what_has_no_mean_is_refused(runs, small_run, tmp_path):
    first = runs["first"]
    for folders, said in [
        ([first], "at least two runs"),
        ([first, first], "given twice"),
        ([first, tmp_path], "not a finished run"),
        ([first, small_run.directory], "has another network than"),
    ]:
        with pytest.raises(CheckpointError, match=said):
            finetune.make_soup(folders, tmp_path / "soup")
    assert not (tmp_path / "soup").exists()
    with pytest.raises(CheckpointError, match="one of the runs; the soup needs a folder of its own"):
        finetune.make_soup([first, runs["second"]], first, overwrite=True)
    assert finetune.restore(first)


def test_a_soup_keeps_off_a_folder_that_a_process_works_on(tmp_path):
    with FolderLock(tmp_path / "soup", "run"), pytest.raises(CheckpointError, match="soup: in use by process"):
        finetune.make_soup([tmp_path / "a", tmp_path / "b"], tmp_path / "soup", overwrite=True)
    (tmp_path / "soup").mkdir()
    (tmp_path / "link").symlink_to("soup")
    with pytest.raises(CheckpointError, match="link: a link, and runs do not write through links"):
        finetune.make_soup([tmp_path / "a", tmp_path / "b"], tmp_path / "link")
