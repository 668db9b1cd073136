import numpy as np
import pytest
from PIL import Image

from finetune.data.sources import read_source
from finetune.data.splits import load_splits
from finetune.errors import DataError
from finetune.recipe import DataConfig


def write(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i:02}.png")


def read(folder):
    return read_source(DataConfig(source=str(folder)))


def counts(images):
    return np.bincount(images.labels, minlength=len(images.names)).tolist()


@pytest.fixture
def flat(tmp_path):
    """Class folders at the top."""
    write(tmp_path / "zebra", 4)
    write(tmp_path / "ant", 2)
    return tmp_path


@pytest.fixture
def nested(tmp_path):
    """Class folders inside train/ and test/."""
    for name, count in [("cat", 6), ("ant", 5), ("bee", 4)]:
        write(tmp_path / "train" / name, count)
        write(tmp_path / "test" / name, 2)
    return tmp_path


def test_folders_at_the_top_are_classes_in_alphabetical_order(flat):
    sources = read(flat)
    assert list(sources) == ["train"]
    assert sources["train"].names == ("ant", "zebra")
    assert counts(sources["train"]) == [2, 4]


def test_folders_for_train_and_test_are_the_splits(nested):
    sources = read(nested)
    assert list(sources) == ["train", "test"]
    assert sources["train"].names == ("ant", "bee", "cat")
    assert counts(sources["train"]) == [5, 4, 6]
    assert counts(sources["test"]) == [2, 2, 2]


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", "Val"])
def test_the_folder_for_validation_may_have_any_of_its_names(nested, name):
    for animal in ("ant", "bee", "cat"):
        write(nested / name / animal, 1)
    sources = read(nested)
    assert list(sources) == ["train", "validation", "test"]
    assert counts(sources["validation"]) == [1, 1, 1]


def test_labels_are_those_of_the_folders_in_every_split(nested):
    splits = load_splits(DataConfig(source=str(nested), validation=0.25), 0)
    for split in splits.named().values():
        assert [splits.class_names[label] for label in split.labels] == [path.parent.name for path in split.images]


def test_images_are_read_at_any_depth_and_other_files_and_hidden_folders_are_ignored(flat):
    write(flat / "ant" / "more" / "deep", 5)
    (flat / "ant" / "notes.txt").write_text("notes")
    write(flat / ".cache", 3)
    sources = read(flat)
    assert sources["train"].names == ("ant", "zebra")
    assert counts(sources["train"]) == [7, 4]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_folder_without_images_is_no_class_and_is_named(nested, split):
    for file in (nested / split / "bee").iterdir():
        file.unlink()
    source = read(nested)[split]
    assert source.names == ("ant", "cat")
    assert source.notes == (f"{nested / split / 'bee'}: no images inside, so no class",)


def test_one_class_folder_is_too_few(tmp_path):
    write(tmp_path / "only", 3)
    with pytest.raises(DataError, match="needs a folder with images for each of at least two classes; has only/"):
        read(tmp_path)
