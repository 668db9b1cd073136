import numpy as np
import pytest

from finetune.data.labeled_images import Split
from finetune.data.stratify import grouped_folds, stratified_split
from finetune.errors import DataError


def split_of(labels):
    """Images that are their own index."""
    index = np.arange(len(labels), dtype=np.uint8)
    return Split(np.broadcast_to(index[:, None, None], (len(labels), 2, 2)), labels)


def indices(split):
    return split.images[:, 0, 0].tolist()


SINGLE = split_of(np.int32([0] * 40 + [1] * 20 + [2] * 8))
MULTI = split_of((np.random.default_rng(0).random((200, 4)) < [0.05, 0.2, 0.5, 0.8]).astype(np.float32))


@pytest.mark.parametrize("split", [SINGLE, MULTI], ids=["single-label", "multi-label"])
def test_every_image_is_on_one_side_in_its_order_and_with_its_labels(split):
    sides = stratified_split(split, 0.25, 0, "data.test")
    assert sorted(indices(sides[0]) + indices(sides[1])) == list(range(len(split)))
    for side in sides:
        assert indices(side) == sorted(indices(side))
        np.testing.assert_array_equal(side.labels, split.labels[indices(side)])


def test_the_part_has_its_share_of_each_class():
    remainder, part = stratified_split(SINGLE, 0.25, 0, "data.test")
    assert np.bincount(remainder.labels).tolist() == [30, 15, 6]
    assert np.bincount(part.labels).tolist() == [10, 5, 2]


def test_the_part_has_its_share_of_each_label_where_images_have_many():
    _, part = stratified_split(MULTI, 0.25, 0, "data.test")
    assert len(part) == 50
    np.testing.assert_allclose(part.labels.sum(0), 0.25 * MULTI.labels.sum(0), atol=1)


def test_images_without_any_label_are_shared_out_too():
    split = split_of(np.float32([[1, 0]] * 8 + [[0, 0]] * 8))
    _, part = stratified_split(split, 0.25, 0, "data.test")
    assert part.labels.sum(1).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("split", [SINGLE, MULTI], ids=["single-label", "multi-label"])
def test_the_sides_are_a_function_of_the_seed(split):
    a, again, b = (indices(stratified_split(split, 0.25, seed, "data.test")[1]) for seed in (3, 3, 4))
    assert a == again
    assert a != b


@pytest.mark.parametrize(("fraction", "sizes"), [(0.02, [1, 1, 0]), (0.95, [38, 19, 7])])
def test_a_side_with_fewer_images_than_classes_has_the_nearest_shares(fraction, sizes):
    _, part = stratified_split(SINGLE, fraction, 0, "data.validation")
    counts = np.bincount(part.labels, minlength=3)
    assert sorted(counts.tolist(), reverse=True) == pytest.approx(sizes, abs=1)
    assert counts.sum() == np.ceil(fraction * 68)


@pytest.mark.parametrize(("trains_on", "side"), [("remainder", 0), ("part", 1)])
def test_the_only_image_of_a_class_is_trained_on(trains_on, side):
    split = split_of(np.int32([0] * 10 + [1] * 10 + [2]))
    sides = stratified_split(split, 0.3, 0, "data.test", trains_on)
    assert [2 in part.labels for part in sides] == [side == 0, side == 1]


def test_a_side_without_any_image_names_the_option():
    with pytest.raises(DataError, match=r"data.test: cannot take 0.999 of 68 images in 3 classes: one side"):
        stratified_split(SINGLE, 0.999, 0, "data.test")


def test_folds_hold_out_every_image_once_with_the_same_share_of_each_class():
    labels = np.array([0] * 50 + [1] * 25)
    folds = grouped_folds(labels, np.arange(75), 5, 0)
    assert [np.bincount(labels[folds == fold]).tolist() for fold in range(5)] == [[10, 5]] * 5
    assert not (folds == grouped_folds(labels, np.arange(75), 5, 1)).all()


def test_the_images_of_a_group_are_in_one_fold():
    rng = np.random.default_rng(0)
    groups = np.unique(rng.integers(0, 40, 100), return_inverse=True)[1]
    folds = grouped_folds(rng.integers(0, 3, 100), groups, 5, 0)
    assert all(len(set(folds[groups == group].tolist())) == 1 for group in range(groups.max() + 1))
    assert set(folds.tolist()) == set(range(5))


def test_an_image_without_another_of_its_class_outside_its_fold_is_in_no_fold():
    labels = np.array([0] * 10 + [1, 2, 2, 3, 3])
    groups = np.array([*range(11), 11, 11, 12, 13])  # class 2 has two copies of one image
    folds = grouped_folds(labels, groups, 5, 0)
    assert folds[10:13].tolist() == [-1, -1, -1]
    assert folds[13] != folds[14]
    assert (folds[[*range(10), 13, 14]] >= 0).all()


def test_of_single_images_of_each_class_none_is_held_out():
    assert grouped_folds(np.arange(4), np.arange(4), 5, 0).tolist() == [-1] * 4
