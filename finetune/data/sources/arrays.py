"""Images that are arrays already: scikit-learn's digits and .npz files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finetune.data.labeled_images import LabeledImages
from finetune.data.sources.labels import declared_names, labels_from_names, sort_names
from finetune.data.sources.npz import NpzFile
from finetune.data.sources.split_names import canonical_split, words_of
from finetune.errors import DataError, first_line, listed

_IMAGES = frozenset({"x", "image", "images", "imgs", "pixels"})
_EXACT = 2.0**53  # the whole numbers below are exact as floats
_LABELS = frozenset({"y", "label", "labels", "target", "targets"})


def read_digits() -> dict[str, LabeledImages]:
    """scikit-learn's 1,797 handwritten digits (UCI optdigits), 8x8 pixels in 17 shades."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    return {"train": LabeledImages(images, data.target.astype(np.int32), tuple("0123456789"), "digits")}


def read_npz(path: Path) -> dict[str, LabeledImages]:
    """Images and labels from a .npz file.

    Its arrays: ``images`` and ``labels``, or ``x`` and ``y``; or those of each split, in either order of words:
    ``x_train`` and ``y_train``, ``train_images`` and ``train_labels``. Images are uint8 [n, H, W] or [n, H, W, 3].
    Labels are integers or names [n] or [n, 1], or 0 and 1 [n, C]. The optional ``class_names`` are those of integer
    labels and of columns.

    Raises:
        DataError: the file cannot be read, or its arrays are not as above.
    """
    file = NpzFile(path)
    keys = _keys(file.names)
    if "train" not in keys:
        raise DataError(
            f"{path}: needs images and labels, or x_train and y_train (also x_val, y_val, x_test, y_test); "
            f"has {listed(file.names) or 'nothing'}"
        )
    wanted = {"class_names", *(key for pair in keys.values() for key in pair)}
    arrays = file.read([name for name in file.names if name in wanted])
    class_names = _class_names(path, arrays["class_names"]) if "class_names" in arrays else None
    splits = {split: _read_split(path, arrays, *pair, class_names) for split, pair in keys.items()}
    unused = tuple(f"{path}: array {name!r} is not used" for name in file.names if name not in wanted)
    return {**splits, "train": splits["train"].with_notes(unused)}


def _class_names(path: Path, array: np.ndarray) -> tuple[str, ...]:
    where = f"{path}: class_names"
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise DataError(f"{where}: must be texts [C], one for each class; are {array.dtype} {list(array.shape)}")
    return declared_names(_texts(array, where), where)


def _texts(array: np.ndarray, where: str) -> list[str]:
    try:
        return [str(text) for text in (np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array)]
    except ValueError as error:  # UnicodeDecodeError, or a number that is no character
        raise DataError(f"{where}: not texts: {first_line(error)}") from None


def _keys(names: list[str]) -> dict[str, tuple[str, str]]:
    """The names of each split's images and labels; those without the name of a split are training data."""
    pairs: dict[str, dict[str, str]] = {}
    for name in names:
        words = words_of(name)
        for kind, kinds in (("images", _IMAGES), ("labels", _LABELS)):
            if kinds.intersection(words):
                rest = "_".join(word for word in words if word not in kinds)
                split = canonical_split(rest) if rest else "train"
                if split is not None:
                    pairs.setdefault(split, {}).setdefault(kind, name)
    return {
        split: (pair["images"], pair.get("labels") or _labels_of(pair["images"]))
        for split, pair in pairs.items()
        if "images" in pair
    }


def _labels_of(images: str) -> str:
    """``y_test`` for ``x_test``, ``test_labels`` for ``test_images``."""
    return "_".join("y" if word == "x" else "labels" if word in _IMAGES else word for word in words_of(images))


def _read_split(
    path: Path, arrays: dict[str, np.ndarray], images_key: str, labels_key: str, class_names: tuple[str, ...] | None
) -> LabeledImages:
    where = f"{path}: {images_key}"
    images, labels = arrays[images_key], arrays.get(labels_key)
    if labels is None:
        raise DataError(f"{where}: has no {labels_key} beside it; the file has {', '.join(arrays)}")
    is_image = images.dtype == np.uint8 and (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3)))
    if not is_image:
        hint = ""
        if images.ndim == 4 and images.shape[1] in (1, 3):
            hint = "; its channels come first: save images.transpose(0, 2, 3, 1)"
        elif images.dtype.kind == "f":
            hint = "; save pixels as integers from 0 to 255"
        raise DataError(
            f"{where}: must be uint8 [n, H, W] or [n, H, W, 3]; is {images.dtype} {list(images.shape)}{hint}"
        )
    if labels.ndim == 0 or len(images) != len(labels):
        raise DataError(f"{where}: {len(images)} images and {labels.size} labels")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        return LabeledImages(images, *_from_columns(labels, class_names, where), where)
    if labels.ndim == 1 and labels.dtype.kind in "US":
        return LabeledImages(images, *labels_from_names(_texts(labels, where), where), where)
    return LabeledImages(images, *_from_integers(labels, class_names, where), where)


def _from_integers(labels: np.ndarray, names: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels.dtype.kind == "f" and (np.abs(labels) < _EXACT).all() and (labels == np.round(labels)).all():
        labels = labels.astype(np.int64)  # NaN and infinity are not below anything
    if labels.ndim != 1 or labels.dtype.kind not in "biu":
        raise DataError(f"{where}: labels must be integers or names [n]; are {labels.dtype} {list(labels.shape)}")
    if names is None:
        return labels_from_names([str(int(value)) for value in labels], where)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise DataError(f"{where}: labels from {labels.min()} to {labels.max()}, but {len(names)} class_names")
    return labels.astype(np.int32), names


def _from_columns(labels: np.ndarray, names: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    names = names or sort_names({str(i) for i in range(labels.shape[1])})
    if len(names) != labels.shape[1] or not np.isin(labels, (0, 1)).all():
        raise DataError(f"{where}: labels [n, C] must be 0 and 1 with a name for each of the {labels.shape[1]} columns")
    return labels.astype(np.float32), names
