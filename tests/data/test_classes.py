import numpy as np
import pytest

from finetune.data.classes import align_classes
from finetune.data.labeled_images import LabeledImages
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


def test_a_class_without_images_is_named():
    train = source(np.int32([0, 1]), ["ant", "bee"])
    with pytest.raises(DataError, match="rows: no images of bee; each class needs some in every split"):
        align_classes({"train": train, "test": source(np.int32([0, 0]), ["ant", "bee"], "rows")})


def test_with_many_labels_per_image_only_training_needs_images_of_every_class():
    full, partial = source(np.eye(2, dtype=np.float32), ["ant", "bee"]), source(np.float32([[1, 0]]), ["ant", "bee"])
    assert align_classes({"train": full, "test": partial})[1] == ("ant", "bee")
    with pytest.raises(DataError, match="no images of bee"):
        align_classes({"train": partial, "test": full})


def test_fewer_than_two_classes_are_too_few():
    with pytest.raises(DataError, match="somewhere: needs at least two classes; has ant"):
        align_classes({"train": source(np.int32([0, 0]), ["ant"])})
