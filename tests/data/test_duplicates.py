import io

import numpy as np
import pytest
from photographs import encoded, photograph
from PIL import Image
from sklearn.datasets import load_digits

from finetune.data import duplicates
from finetune.data.duplicates import Duplicate, duplicates_across, group_duplicates
from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import Split


def split_of(images):
    return scan_images(Split(images, np.zeros(len(images), np.int32)))


TRAIN = [encoded(photograph(200, 150, seed), "PNG") for seed in range(4)]


def duplicates_of(*test):
    return duplicates_across({"train": split_of(TRAIN), "test": split_of(list(test))})


def test_the_same_pixels_are_an_exact_duplicate_in_any_format():
    stored = io.BytesIO()
    Image.open(io.BytesIO(TRAIN[2])).save(stored, "BMP")
    assert duplicates_of(encoded(photograph(200, 150, 9)), stored.getvalue()) == [
        Duplicate("test", 1, "train", 2, True)
    ]


@pytest.mark.parametrize(
    "copy",
    [
        lambda image: encoded(image, quality=60),
        lambda image: encoded(image.resize((120, 90), Image.Resampling.BICUBIC)),
        lambda image: encoded(image.resize((400, 300), Image.Resampling.BICUBIC), quality=80),
    ],
    ids=["at another quality", "smaller", "larger"],
)
def test_a_reencoded_or_resized_copy_is_a_near_duplicate(copy):
    assert duplicates_of(copy(photograph(200, 150, 1))) == [Duplicate("test", 0, "train", 1, False)]


def test_a_mirrored_a_brighter_and_a_broken_image_are_no_duplicates():
    image = photograph(200, 150, 1)
    brighter = image.point(lambda value: min(255, value + 30))
    assert (
        duplicates_of(encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), encoded(brighter), TRAIN[0][:50]) == []
    )


def test_similar_digits_are_hardly_ever_duplicates():
    images = (load_digits().images * 15).astype(np.uint8)
    assert len(duplicates_across({"train": split_of(images[:900]), "test": split_of(images[900:])})) <= 2


def test_every_pair_of_splits_is_compared_without_broken_images():
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


def test_exact_and_near_duplicates_are_in_one_group():
    image = photograph(200, 150, 1)
    copies = [encoded(image, "PNG"), encoded(image, quality=60), encoded(image, "BMP")]
    groups = group_duplicates(split_of([TRAIN[0], copies[0], TRAIN[2], *copies[1:]]))
    assert groups[1] == groups[3] == groups[4]
    assert len(set(groups.tolist())) == 3
    assert groups.max() == 2


def test_duplicates_of_duplicates_are_in_one_group_however_the_pairs_come(monkeypatch):
    # Each is two levels brighter than the one before: neighbors are near duplicates, the ends are not.
    base = np.asarray(photograph(64, 64, 3)) // 2
    chain = [base + step for step in range(0, 10, 2)]
    assert not duplicates_across({"train": split_of(chain[:1]), "test": split_of(chain[-1:])})
    images = split_of([chain[i] for i in (4, 1, 3, 0, 2)] + [base[::-1]])
    for chunk in (duplicates._CHUNK, 64):  # 64: a row and a pair at a time
        monkeypatch.setattr(duplicates, "_CHUNK", chunk)
        assert len(set(group_duplicates(images)[:5].tolist())) == 1
        assert len(set(group_duplicates(images).tolist())) == 2


def test_in_too_many_pairs_only_exact_duplicates_are_grouped(monkeypatch):
    monkeypatch.setattr(duplicates, "_MAX_PAIRS", 3)
    image = photograph(200, 150, 1)
    groups = group_duplicates(split_of([encoded(image, "PNG"), encoded(image, quality=60), encoded(image, "BMP")]))
    assert groups[0] == groups[2] != groups[1]
