import numpy as np
import pytest

from finetune.data.classes import align_classes, describe_rare, describe_similar, drop_rare
from finetune.data.labeled_images import LabeledImages, Split
from finetune.errors import DataError


def source(labels, names, where="somewhere"):
    return LabeledImages(np.zeros((len(labels), 2, 2), np.uint8), np.asarray(labels), tuple(names), where)


def test_labels_are_matched_by_name_across_splits():
    splits, names = align_classes(
        {
            "train": source(np.int32([0, 1, 2]), ["ant", "bee", "cat"]),
            "test": source(np.int32([0, 1, 2]), ["cat", "ant", "bee"]),
        }
    )
    assert names == ("ant", "bee", "cat")
    assert splits["test"].labels.tolist() == [2, 0, 1]
    assert splits["test"].labels.dtype == np.int32


def test_columns_of_labels_are_matched_by_name_across_splits():
    splits, _ = align_classes(
        {
            "train": source(np.eye(2, dtype=np.float32), ["ant", "bee"]),
            "test": source(np.float32([[0, 1, 0]]), ["cat", "bee", "ant"]),
        }
    )
    assert splits["test"].labels.tolist() == [[0, 1]]
    assert splits["test"].labels.dtype == np.float32


def test_a_declared_class_without_images_may_be_missing_from_training():
    splits, names = align_classes(
        {"train": source(np.int32([0, 1]), ["ant", "bee"]), "test": source(np.int32([2, 1]), ["cat", "bee", "ant"])}
    )
    assert names == ("ant", "bee")
    assert splits["test"].labels.tolist() == [0, 1]


def test_a_class_that_training_does_not_have_is_named():
    with pytest.raises(DataError, match=r"rows: classes that training does not have: cat; it has: ant, bee"):
        align_classes(
            {
                "train": source(np.int32([0, 1]), ["ant", "bee"]),
                "test": source(np.int32([0, 1, 2]), ["ant", "bee", "cat"], "rows"),
            }
        )


def test_what_follows_from_missing_and_rare_classes_is_said_for_each_split():
    names = ("ant", "bee", "cat")
    train, test = (Split(np.zeros((len(x), 2, 2), np.uint8), np.int32(x)) for x in ([0, 0, 1], [0, 2]))
    assert list(describe_rare({"train": train, "test": test}, names)) == [
        "no training images of cat: the model cannot learn them",
        "one training image of bee: expect little of them",
        "no test images of bee: test results say nothing about them",
    ]


def test_rare_classes_can_be_dropped_with_their_images():
    sources = {
        "train": source(np.int32([0, 0, 1, 2, 2]), ["ant", "bee", "cat"], "a"),
        "test": source(np.int32([0, 1, 2, 3]), ["ant", "bee", "cat", "dog"], "b"),
    }
    dropped, notes, left_out = drop_rare(sources, 2)
    splits, names = align_classes(dropped)
    assert names == ("ant", "cat")
    assert [split.labels.tolist() for split in splits.values()] == [[0, 0, 1, 1], [0, 1]]
    assert notes == ("a: dropped, as rare in training: bee", "b: dropped, as rare in training: bee, dog")
    assert left_out == tuple(
        f"image {i}: of the rare class '{name}'" for i, name in ((2, "bee"), (1, "bee"), (3, "dog"))
    )


def test_classes_that_differ_by_case_or_spaces_are_named():
    assert list(describe_similar(("Cat", "cat", "house cat", "housecat", "dog"))) == [
        "classes that differ by case or spaces alone are kept apart: 'Cat', 'cat'",
        "classes that differ by case or spaces alone are kept apart: 'house cat', 'housecat'",
    ]


def test_fewer_than_two_classes_are_too_few():
    with pytest.raises(DataError, match="somewhere: needs at least two classes; has ant"):
        align_classes({"train": source(np.int32([0, 0]), ["ant"])})
