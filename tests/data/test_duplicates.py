import io

import numpy as np
import pytest
from photographs import encoded, photograph
from PIL import Image
from sklearn.datasets import load_digits

from finetune.data.duplicates import Duplicate, duplicates_across
from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import Split


def split_of(images):
    return scan_images(Split(images, np.zeros(len(images), np.int32)))


TRAIN = [encoded(photograph(200, 150, seed), "PNG") for seed in range(4)]


def found(*test):
    return duplicates_across({"train": split_of(TRAIN), "test": split_of(list(test))})


def test_the_same_pixels_are_the_same_picture_however_they_are_stored():
    again = io.BytesIO()
    Image.open(io.BytesIO(TRAIN[2])).save(again, "BMP")
    assert found(encoded(photograph(200, 150, 9)), again.getvalue()) == [Duplicate("test", 1, "train", 2, True)]


@pytest.mark.parametrize(
    "copy",
    [
        lambda image: encoded(image, quality=60),
        lambda image: encoded(image.resize((120, 90), Image.Resampling.BICUBIC)),
        lambda image: encoded(image.resize((400, 300), Image.Resampling.BICUBIC), quality=80),
    ],
    ids=["at another quality", "smaller", "larger"],
)
def test_a_copy_is_nearly_the_same_picture(copy):
    assert found(copy(photograph(200, 150, 1))) == [Duplicate("test", 0, "train", 1, False)]


def test_a_mirrored_a_brighter_and_another_picture_are_not():
    image = photograph(200, 150, 1)
    brighter = image.point(lambda value: min(255, value + 30))
    assert found(encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), encoded(brighter), TRAIN[0][:50]) == []


def test_plain_pictures_of_one_kind_are_not_taken_for_each_other():
    images = (load_digits().images * 15).astype(np.uint8)
    assert len(duplicates_across({"train": split_of(images[:900]), "test": split_of(images[900:])})) <= 2


def test_splits_are_compared_two_by_two_and_broken_images_not_at_all():
    splits = {
        "train": split_of(TRAIN),
        "validation": split_of([TRAIN[3], b"broken"]),
        "test": split_of([b"broken", TRAIN[3]]),
    }
    assert duplicates_across(splits) == [
        Duplicate("validation", 0, "train", 3, True),
        Duplicate("test", 1, "train", 3, True),
        Duplicate("test", 1, "validation", 0, True),
    ]
