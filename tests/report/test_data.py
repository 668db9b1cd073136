import json

import numpy as np
from photographs import photograph

from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import Split
from finetune.data.splits import Splits
from finetune.report.data import report


def split_of(seeds, labels, sizes=((20, 16),)):
    images = [np.asarray(photograph(*sizes[i % len(sizes)], seed)) for i, seed in enumerate(seeds)]
    return scan_images(Split(images, np.asarray(labels)))


TRAIN = split_of(range(4), np.int32([0, 0, 0, 1]), [(20, 16), (40, 30)])


def test_each_split_has_counts_sizes_and_modes():
    result = report(Splits(TRAIN, None, split_of([7, 8], np.int32([0, 1])), ("ant", "bee")))
    assert json.loads(json.dumps(result))["classes"] == ["ant", "bee"]
    train = result["splits"]["train"]
    assert (train["images"], train["per_class"], train["imbalance"]) == (4, {"ant": 3, "bee": 1}, 3.0)
    assert train["sizes"] == {"smallest": (20, 16), "largest": (40, 30), "median": [30, 23], "different": 2}
    assert train["modes"] == {"RGB": 4}
    assert list(result["splits"]) == ["train", "test"]
    assert result["leakage"] == {"exact": 0, "near": 0, "examples": []}


def test_images_with_many_labels_are_counted_for_each_of_them():
    splits = Splits(split_of(range(3), np.float32([[1, 1], [1, 0], [0, 0]])), None, TRAIN, ("ant", "bee"))
    assert report(splits)["splits"]["train"]["per_class"] == {"ant": 2, "bee": 1}


def test_images_in_two_splits_are_counted_and_named():
    splits = Splits(TRAIN, None, split_of([0, 9], np.int32([0, 1])), ("ant", "bee"))
    assert report(splits)["leakage"]["exact"] == 1
    assert report(splits)["leakage"]["examples"] == [["test: image 0", "train: image 0"]]
