import numpy as np
import pytest

from finetune.data.splits import load_splits
from finetune.errors import DataError
from finetune.recipe import DataConfig

IMAGES = np.arange(8, dtype=np.uint8)[:, None, None] * np.ones((8, 4, 5), np.uint8)
LABELS = np.arange(8) % 2


@pytest.fixture
def save(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "images.npz", **arrays)
        return tmp_path / "images.npz"

    write.file = tmp_path / "images.npz"
    return write


def load(path):
    return load_splits(DataConfig(source=str(path), validation=0.0), 0)


def test_labels_stay_with_their_images(save):
    splits = load(save(images=IMAGES, labels=LABELS, class_names=np.array(["even", "odd"])))
    assert splits.class_names == ("even", "odd")
    for split in (splits.train, splits.test):
        assert (split.images[:, 0, 0] % 2).tolist() == split.labels.tolist()


def test_splits_of_the_file_are_used(save):
    splits = load(save(x_train=IMAGES[:6], y_train=LABELS[:6], x_test=IMAGES[6:], y_test=LABELS[6:]))
    assert (len(splits.train), len(splits.test), splits.class_names) == (6, 2, ("0", "1"))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (("train_images", "train_labels"), ("test_images", "test_labels")),  # MedMNIST
        (("X_train", "y_train"), ("X_test", "y_test")),
        (("x_training", "targets_training"), ("x_testing", "targets_testing")),
        (("trainImages", "trainLabels"), ("testImages", "testLabels")),
    ],
)
@pytest.mark.parametrize(
    "labels", [LABELS[:, None], LABELS.astype(float), LABELS.astype(np.uint8), LABELS.astype(bool)]
)
def test_key_names_and_labels_in_the_wild_are_understood(save, train, test, labels):
    parts = {train[0]: IMAGES[:6], train[1]: labels[:6], test[0]: IMAGES[6:], test[1]: labels[6:]}
    splits = load(save(**parts))
    assert (len(splits.train), len(splits.test), splits.class_names) == (6, 2, ("0", "1"))
    assert splits.train.labels.tolist() == LABELS[:6].tolist()


def test_x_and_y_are_images_and_labels_and_other_arrays_are_named(save):
    splits = load(save(x=IMAGES, y=LABELS, ids=np.arange(8)))
    assert splits.class_names == ("0", "1")
    assert splits.notes == (f"{save.file}: array 'ids' is not used",)


@pytest.mark.parametrize(
    ("images", "hint"),
    [(np.zeros((8, 3, 4, 5), np.uint8), "channels come first"), (IMAGES / 255, "integers from 0 to 255")],
)
def test_arrays_of_other_conventions_get_the_way_to_convert_them(save, images, hint):
    with pytest.raises(DataError, match=hint):
        load(save(images=images, labels=LABELS))


def test_labels_may_be_names(save):
    assert load(save(images=IMAGES, labels=np.array(["b", "a"] * 4))).class_names == ("a", "b")


def test_rows_of_0_and_1_are_many_labels_per_image(save):
    splits = load(save(images=IMAGES, labels=np.stack([LABELS, np.ones(8, int)], 1)))
    assert splits.multi_label
    assert (splits.train.images[:, 0, 0] % 2).tolist() == splits.train.labels[:, 0].tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"thumbs": IMAGES}, "needs images and labels, or x_train and y_train .*; has thumbs"),
        ({"images": IMAGES}, "images: has no labels beside it"),
        ({"images": IMAGES, "labels": LABELS, "test_images": IMAGES}, "test_images: has no test_labels beside it"),
        ({"train_images": IMAGES, "labels": LABELS, "test_images": IMAGES}, "test_images: has no test_labels beside"),
        ({"x": IMAGES, "y": LABELS, "x_test": IMAGES}, "x_test: has no y_test beside it"),
        ({"images": IMAGES, "labels": LABELS[:5]}, "8 images and 5 labels"),
        ({"images": IMAGES / 255, "labels": LABELS}, r"must be uint8 .*; is float64 \[8, 4, 5\]"),
        ({"images": IMAGES, "labels": LABELS / 2}, "labels must be integers or names"),
        ({"images": IMAGES, "labels": LABELS + 1, "class_names": np.array(["a", "b"])}, "labels from 1 to 2, but 2"),
        ({"images": IMAGES, "labels": 2 * np.stack([LABELS, LABELS], 1)}, "must be 0 and 1"),
    ],
)
def test_arrays_that_do_not_fit_are_described(save, arrays, message):
    with pytest.raises(DataError, match=message):
        load(save(**arrays))


@pytest.mark.parametrize(("split", "name"), [("val", "validation"), ("test", "test")])
def test_a_split_without_images_is_named(save, split, name):
    none = {f"x_{split}": IMAGES[:0], f"y_{split}": LABELS[:0]}
    with pytest.raises(DataError, match=f"the {name} split: has no images; add some, or leave it out"):
        load(save(x_train=IMAGES, y_train=LABELS, **none))


def test_pickled_objects_are_not_loaded(save):
    with pytest.raises(DataError, match="cannot be read as arrays"):
        load(save(images=np.array([{}], dtype=object), labels=LABELS[:1]))


def test_a_truncated_file_is_named(save):
    path = save(images=IMAGES, labels=LABELS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"images.npz: (damaged|cannot be read)"):
        load(path)
