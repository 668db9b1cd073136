import shutil

import numpy as np
import pytest
from PIL import Image

from finetune.data.splits import class_names_of, load_splits
from finetune.errors import DataError
from finetune.recipe import DataConfig


def write(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i:02}.png")


def config(source, **options):
    return DataConfig(source=str(source), **options)


def counts(split, classes):
    return np.bincount(split.labels, minlength=classes).tolist()


@pytest.fixture
def folder(tmp_path):
    """Two classes, 20 and 10 images."""
    write(tmp_path / "zebra", 20)
    write(tmp_path / "ant", 10)
    return tmp_path


def test_digits_are_1797_grey_images_of_ten_classes():
    splits = load_splits(config("digits", validation=0.0), 0)
    assert len(splits.train) + len(splits.test) == 1797
    assert splits.class_names == tuple("0123456789")
    assert (splits.train.images.dtype, splits.train.images.shape[1:]) == (np.uint8, (8, 8))
    assert splits.train.images.max() == 255
    assert splits.validation is None


@pytest.mark.parametrize(
    ("options", "sha256"),
    [
        ({}, "058e625d2dad86752b38876cf327f005558be22b7dcad0f23f145855d86b62e1"),
        ({"shots_per_class": 5}, "49be994146886cbc0a56dbb114ed206ef1ee4510bd9f98393c9154c77fe0faec"),
    ],
)
def test_the_splits_of_digits_are_those_of_recorded_accuracies(options, sha256):
    assert load_splits(config("digits", **options), 0).sha256 == sha256


def test_missing_splits_are_taken_from_training_stratified(folder):
    splits = load_splits(config(folder, test=0.2, validation=0.25), 0)
    assert counts(splits.test, 2) == [2, 4]
    assert counts(splits.validation, 2) == [2, 4]
    assert counts(splits.train, 2) == [6, 12]
    everything = [path for split in splits.named().values() for path in split.images]
    assert len(set(everything)) == len(everything) == 30


def test_splits_of_the_source_are_used_as_they_are(tmp_path):
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        for animal in ("ant", "bee"):
            write(tmp_path / split / animal, count)
    splits = load_splits(config(tmp_path, test=0.2, validation=0.1), 0)
    assert {name: counts(split, 2) for name, split in splits.named().items()} == {
        "train": [6, 6],
        "validation": [3, 3],
        "test": [2, 2],
    }


def test_a_fraction_of_the_training_images_keeps_each_classs_share(folder):
    splits = load_splits(config(folder, test=0.2, validation=0.0, fraction=0.5), 0)
    assert counts(splits.train, 2) == [4, 8]
    assert counts(splits.test, 2) == [2, 4]


def test_the_hash_covers_pixels_labels_and_order(folder):
    def sha256():
        return load_splits(config(folder, test=0.2), 0).sha256

    before = sha256()
    assert before == sha256()
    Image.new("RGB", (4, 4), (0, 99, 0)).save(folder / "ant" / "03.png")
    changed = sha256()
    assert changed != before
    (folder / "ant" / "03.png").unlink()
    assert sha256() not in (before, changed)


def test_the_validation_split_depends_on_the_seed_and_the_test_split_does_not():
    a, b = (load_splits(config("digits"), seed) for seed in (0, 1))
    np.testing.assert_array_equal(a.test.images, b.test.images)
    assert not np.array_equal(a.validation.images, b.validation.images)


def test_the_same_seed_gives_the_same_splits():
    a, b = (load_splits(config("digits", shots_per_class=3), 4) for _ in range(2))
    np.testing.assert_array_equal(a.train.images, b.train.images)


def test_shots_are_drawn_from_each_class_by_seed():
    a, b = (load_splits(config("digits", shots_per_class=7), seed) for seed in (0, 1))
    assert counts(a.train, 10) == [7] * 10
    assert a.validation is None
    assert not np.array_equal(a.train.images, b.train.images)
    np.testing.assert_array_equal(a.test.images, b.test.images)


def test_more_shots_than_images_of_a_class_name_the_class(folder):
    with pytest.raises(DataError, match="shots_per_class: 9 asked for, but class 'ant' has 8 training images"):
        load_splits(config(folder, test=0.2, shots_per_class=9), 0)


def test_a_split_that_leaves_nothing_to_train_on_names_its_option(folder):
    with pytest.raises(DataError, match=r"data\.validation: cannot take .* in 2 classes: one side would be empty"):
        load_splits(config(folder, test=0.2, validation=0.99), 0)


def test_class_names_are_read_without_decoding_an_image(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"not an image")
    assert class_names_of(config(folder)) == ("ant", "zebra")


def test_dropped_classes_are_none_of_the_names_that_a_plan_counts(folder):
    (folder / "rare").mkdir()
    shutil.copy(next(folder.glob("ant/*.png")), folder / "rare" / "1.png")
    dropping = config(folder, rare_classes="drop")
    assert class_names_of(dropping) == load_splits(dropping, 0).class_names == ("ant", "zebra")


def test_a_missing_source_is_reported_with_the_nearest_name():
    with pytest.raises(DataError, match=r"digit: no such file or folder in .* \(did you mean 'digits'\?\)"):
        load_splits(config("digit"), 0)
