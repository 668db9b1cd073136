import numpy as np
import pytest
from PIL import Image

from finetune.data.splits import load_splits
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
def flat(tmp_path):
    """Two classes at the top, 20 and 10 images."""
    write(tmp_path / "zebra", 20)
    write(tmp_path / "ant", 10)
    return tmp_path


@pytest.fixture
def divided(tmp_path):
    """Three classes inside train/ and test/."""
    for name, count in [("cat", 6), ("ant", 5), ("bee", 4)]:
        write(tmp_path / "train" / name, count)
        write(tmp_path / "test" / name, 2)
    return tmp_path


def test_digits_are_1797_grey_images_of_ten_classes():
    splits = load_splits(config("digits", validation=0.0), 0)
    assert len(splits.train) + len(splits.test) == 1797
    assert splits.class_names == tuple("0123456789")
    assert (splits.train.images.dtype, splits.train.images.shape[1:]) == (np.uint8, (8, 8))
    assert splits.train.images.max() == 255
    assert splits.validation is None


def test_splits_made_here_are_stratified(flat):
    splits = load_splits(config(flat, test=0.2, validation=0.25), 0)
    assert counts(splits.test, 2) == [2, 4]
    assert counts(splits.validation, 2) == [2, 4]
    assert counts(splits.train, 2) == [6, 12]
    everything = [path for split in (splits.train, splits.validation, splits.test) for path in split.images]
    assert len(set(everything)) == len(everything) == 30


def test_a_fraction_keeps_each_classs_share_of_the_training_images_alone(flat):
    splits = load_splits(config(flat, test=0.2, validation=0.0, fraction=0.5), 0)
    assert counts(splits.train, 2) == [4, 8]
    assert counts(splits.test, 2) == [2, 4]


def test_the_hash_of_the_data_is_that_of_pixels_labels_and_order(flat):
    def sha256():
        return load_splits(config(flat, test=0.2), 0).sha256

    before = sha256()
    assert before == sha256()
    Image.new("RGB", (4, 4), (0, 99, 0)).save(flat / "ant" / "03.png")
    changed = sha256()
    assert changed != before
    (flat / "ant" / "03.png").unlink()
    assert sha256() not in (before, changed)


def test_the_test_split_does_not_depend_on_the_seed_and_validation_does():
    a, b = (load_splits(config("digits"), seed) for seed in (0, 1))
    np.testing.assert_array_equal(a.test.images, b.test.images)
    assert not np.array_equal(a.validation.images, b.validation.images)


def test_the_same_seed_gives_the_same_splits():
    a, b = (load_splits(config("digits", shots_per_class=3), 4) for _ in range(2))
    np.testing.assert_array_equal(a.train.images, b.train.images)


def test_shots_are_so_many_of_each_class_and_follow_the_seed():
    a, b = (load_splits(config("digits", shots_per_class=7), seed) for seed in (0, 1))
    assert counts(a.train, 10) == [7] * 10
    assert a.validation is None
    assert not np.array_equal(a.train.images, b.train.images)
    np.testing.assert_array_equal(a.test.images, b.test.images)


def test_more_shots_than_images_name_the_class(flat):
    with pytest.raises(DataError, match="shots_per_class: 9 asked for, but class 'ant' has 8 training images"):
        load_splits(config(flat, test=0.2, shots_per_class=9), 0)


@pytest.mark.parametrize("options", [{"test": 0.001}, {"test": 0.2, "validation": 0.99}])
def test_a_split_too_small_for_every_class_is_refused(flat, options):
    name = "validation" if "validation" in options else "test"
    with pytest.raises(DataError, match=rf"data.{name}: cannot take .* in 2 classes"):
        load_splits(config(flat, **options), 0)


def test_folders_for_train_and_test_are_used_as_they_are(divided):
    splits = load_splits(config(divided, validation=0.0), 0)
    assert splits.class_names == ("ant", "bee", "cat")
    assert counts(splits.train, 3) == [5, 4, 6]
    assert counts(splits.test, 3) == [2, 2, 2]


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_a_folder_for_validation_is_used_under_each_of_its_names(divided, name):
    for animal in ("ant", "bee", "cat"):
        write(divided / name / animal, 1)
    splits = load_splits(config(divided), 0)
    assert counts(splits.validation, 3) == [1, 1, 1]
    assert counts(splits.train, 3) == [5, 4, 6]


def test_labels_go_by_name_in_every_split(divided):
    splits = load_splits(config(divided, validation=0.25), 0)
    for split in (splits.train, splits.validation, splits.test):
        assert [splits.class_names[label] for label in split.labels] == [path.parent.name for path in split.images]


def test_images_are_found_at_any_depth_and_other_files_are_passed_over(flat):
    write(flat / "ant" / "more" / "deep", 5)
    (flat / "ant" / "notes.txt").write_text("notes")
    (flat / ".cache").mkdir()
    splits = load_splits(config(flat, test=0.2, validation=0.0), 0)
    assert splits.class_names == ("ant", "zebra")
    assert counts(splits.train, 2) == [12, 16]


def test_a_class_that_training_does_not_have_is_named(divided):
    write(divided / "test" / "dog", 1)
    with pytest.raises(DataError, match=r"test: classes that training does not have: dog; it has: ant, bee, cat"):
        load_splits(config(divided), 0)


@pytest.mark.parametrize("folder", ["train", "test"])
def test_a_class_without_images_is_named(divided, folder):
    for file in (divided / folder / "bee").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=rf"{folder}/bee: no images .*each class needs some"):
        load_splits(config(divided), 0)


def test_one_class_is_too_few(tmp_path):
    write(tmp_path / "only", 3)
    with pytest.raises(DataError, match="needs a folder for each of at least two classes; has 1"):
        load_splits(config(tmp_path), 0)


def test_a_source_that_is_not_there_offers_the_nearest_name(tmp_path):
    with pytest.raises(DataError, match=r"digit: no such file or folder \(did you mean 'digits'\?\)"):
        load_splits(config("digit"), 0)
