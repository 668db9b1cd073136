"""Images for a model that is there already."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from finetune.data.known_classes import read_known_images
from finetune.errors import DataError
from finetune.recipe import DataConfig
from finetune.tracking import untracked

IMAGES, LABELS = np.arange(48, dtype=np.uint8).reshape(3, 4, 4), np.array([0, 1, 1])


def table(folder, labels):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    pq.write_table(pa.table({"image": [file.getvalue()] * len(labels), "label": labels}), folder / "t.parquet")
    return DataConfig(source=str(folder / "t.parquet"))


def test_sets_that_happen_to_have_one_class_each_are_labels_of_a_model_of_several(tmp_path):
    known = read_known_images(table(tmp_path, [["dog"], ["cat"]]), None, ["bird", "cat", "dog"], True, untracked)
    assert known.images.labels.tolist() == [[0, 0, 1], [0, 1, 0]]


def test_plain_classes_say_nothing_of_the_others_and_are_refused_for_a_model_of_several(tmp_path):
    with pytest.raises(DataError, match="has one class for each image; the model was trained for several"):
        read_known_images(table(tmp_path, ["dog", "cat"]), None, ["bird", "cat", "dog"], True, untracked)


@pytest.fixture
def read(tmp_path):
    def of(split=None, source="a.npz", **arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        config = DataConfig(source=str(tmp_path / source), on_broken_image="skip")
        return read_known_images(config, split, ("0", "1"), False, untracked)

    return of


NONE = {"x_test": IMAGES[:0], "y_test": LABELS[:0]}


def test_a_split_without_images_is_named(read):
    with pytest.raises(DataError, match="a.npz: the test split: has no images"):
        read("test", x_train=IMAGES, y_train=LABELS, **NONE)


def test_a_split_without_images_among_others_adds_none(read):
    assert len(read(x_train=IMAGES, y_train=LABELS, **NONE).images) == 3


def test_images_that_are_all_broken_are_an_error_that_names_the_first(read, tmp_path):
    for name in ("0", "1"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="photos: its 2 images are all broken, the first: .*0/a.png: an empty file"):
        read(source="photos", x=IMAGES, y=LABELS)
