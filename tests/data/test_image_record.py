import numpy as np
import pytest

from finetune.data.image_record import IMAGES_FILE, ImageRecord
from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import Split
from finetune.data.splits import Splits


def split_of(*values, label=0):
    images = np.stack([np.full((4, 4), value, np.uint8) for value in values])
    return scan_images(Split(images, np.full(len(values), label, np.int32)))


def splits_of(train=(1, 2, 3), test=(4, 5), **options):
    return Splits(split_of(*train, **options), None, split_of(*test), ("a", "b"))


BEFORE = ImageRecord.of(splits_of())


def changes(**options):
    return ImageRecord.of(splits_of(**options)).changes_since(BEFORE)


def test_the_same_images_have_not_changed():
    assert changes() is None


def test_images_that_changed_are_counted_and_one_is_named():
    assert changes(train=(1, 9, 3)) == "data.source: 1 of 5 image is not one of its start, such as image 1"
    assert "2 of 5 images are not those of its start, such as image 2" in changes(train=(1, 2, 9), test=(4, 8))


def test_images_that_are_missing_are_counted():
    assert changes(train=(1, 2)) == "data.source: 1 of the 5 of its start are missing"
    assert "1 of 3 image is not one of its start, such as image 0 and 3 of the 5 of its start are missing" in changes(
        train=(9,)
    )


@pytest.mark.parametrize("options", [{"train": (2, 1, 3)}, {"train": (1, 2, 4), "test": (3, 5)}, {"label": 1}])
def test_another_order_division_or_label_is_told_from_other_images(options):
    assert changes(**options) == (
        "data.source: the images are those of its start, but labels, splits or order are others"
    )


def test_a_further_set_is_part_of_it():
    with_set = ImageRecord.of(splits_of(), {"noisy": split_of(7, 8)})
    assert ImageRecord.of(splits_of(), {"noisy": split_of(7, 8)}).changes_since(with_set) is None
    changed = ImageRecord.of(splits_of(), {"noisy": split_of(7, 9)}).changes_since(with_set)
    assert changed == "evaluate.also.noisy: 1 of 2 image is not one of its start, such as image 1"


def test_a_record_is_read_back(tmp_path):
    (tmp_path / IMAGES_FILE).write_bytes(BEFORE.to_bytes())
    loaded = ImageRecord.load(tmp_path)
    assert ImageRecord.of(splits_of()).changes_since(loaded) is None
    assert "1 of 5" in ImageRecord.of(splits_of(train=(1, 2, 9))).changes_since(loaded)


@pytest.mark.parametrize("content", [None, b"", b"damaged" * 10])
def test_a_record_that_cannot_be_read_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / IMAGES_FILE).write_bytes(content)
    assert ImageRecord.load(tmp_path) is None
