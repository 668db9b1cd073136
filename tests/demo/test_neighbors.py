"""The training images that are most like an image."""

import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import finetune
from finetune.data.labeled_images import Split
from finetune.data.splits import load_splits
from finetune.demo import neighbors
from finetune.demo.neighbors import TrainingImages, read_training_images
from finetune.errors import CheckpointError, DataError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def train(small_run):
    recipe = finetune.load_recipe(small_run.directory / "recipe.yaml")
    return load_splits(recipe.data, recipe.seed).train


def test_a_training_image_is_its_own_nearest_and_most_of_the_next_are_of_its_class(small_run, train):
    training = read_training_images(small_run.directory, small_run.predictor())
    assert len(training) == len(train)
    same = []
    for index in range(0, len(train), 20):
        first, *others = training.nearest(train.images[index], 6)
        assert first.similarity == pytest.approx(1, abs=1e-4)
        assert first.labels == (str(train.labels[index]),)
        np.testing.assert_array_equal(first.image, train.images[index])
        similarities = [neighbor.similarity for neighbor in (first, *others)]
        assert similarities == sorted(similarities, reverse=True)
        same += [neighbor.labels == first.labels for neighbor in others]
    assert np.mean(same) > 0.7


def test_of_many_images_some_from_everywhere_are_taken(small_run, train, monkeypatch):
    monkeypatch.setattr(neighbors, "MOST", 7)
    labels = np.zeros((len(train), 3), np.float32)
    labels[:, 1:] = 1
    training = TrainingImages(small_run.predictor(), Split(train.images, labels), ("a", "b", "c"))
    found = training.nearest(train.images[0], 20)
    assert len(found) == len(training) == 7
    assert found[0].labels == ("b", "c")
    assert any(np.array_equal(neighbor.image, train.images[len(train) - 1]) for neighbor in found)


def test_a_model_alone_does_not_know_them(small_run):
    with pytest.raises(CheckpointError, match="a model alone does not know them; give the folder of its run"):
        read_training_images(small_run.directory / "model", small_run.predictor())


def test_images_that_are_gone_or_changed_are_not_shown_as_those_of_the_run(small_run, tmp_path):
    for name in ("gone", "changed"):
        (tmp_path / name).mkdir()
        for file in ("recipe.yaml", "images.safetensors"):
            shutil.copy(small_run.directory / file, tmp_path / name)
    recipe = tmp_path / "gone" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("source: digits", "source: nowhere/at/all"))
    with pytest.raises(DataError, match="nowhere/at/all: no such file"):
        read_training_images(tmp_path / "gone", small_run.predictor())
    record = tmp_path / "changed" / "images.safetensors"
    with safe_open(record, "numpy") as file:
        hashes, digests = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    hashes["data.source"][0] += 1
    save_file(hashes, record, {**digests, "data.source": "0" * 64})
    with pytest.raises(DataError, match="they have changed: data.source: 1 of .* image is not one of its start"):
        read_training_images(tmp_path / "changed", small_run.predictor())
