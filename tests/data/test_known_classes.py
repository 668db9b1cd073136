"""Images for a model that is there already."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from finetune.data.known_classes import read_known_images
from finetune.errors import DataError
from finetune.recipe import DataConfig
from finetune.tracking import untracked


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
