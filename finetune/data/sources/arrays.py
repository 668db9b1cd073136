"""Images that are arrays already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.sources.labels import LabeledImages, from_names, sorted_names
from finetune.errors import DataError

_PARTS = {"train": ("x_train", "y_train"), "validation": ("x_val", "y_val"), "test": ("x_test", "y_test")}
_FORM = "needs images and labels, or x_train and y_train (also x_val, y_val, x_test, y_test)"


def read_digits() -> dict[str, LabeledImages]:
    """scikit-learn's 1,797 handwritten digits (UCI optdigits), 8x8 pixels in 17 shades."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    return {"train": LabeledImages(images, data.target.astype(np.int32), tuple("0123456789"), "digits")}


def read_npz(path: Path) -> dict[str, LabeledImages]:
    """``images`` uint8 [n, H, W] or [n, H, W, 3] and ``labels``, or x_train, y_train and so on; ``class_names`` where
    labels are numbers. Labels are ints or names [n], or 0 and 1 [n, C]."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as arrays: {error}") from None
    except Exception as error:  # zipfile and zlib have exceptions of their own
        raise DataError(f"{path}: damaged: {error}") from None
    found = {split: keys for split, keys in _PARTS.items() if keys[0] in arrays}
    if "images" in arrays:
        found = {"train": ("images", "labels")}
    if "train" not in found:
        raise DataError(f"{path}: {_FORM}; has {', '.join(arrays) or 'nothing'}")
    names = tuple(map(str, arrays["class_names"])) if "class_names" in arrays else None
    return {split: _labelled(path, arrays, keys, names) for split, keys in found.items()}


def _labelled(path: Path, arrays: dict[str, np.ndarray], keys: tuple[str, str], names: Any) -> LabeledImages:
    where = f"{path}: {keys[0]}"
    images, labels = arrays[keys[0]], arrays.get(keys[1])
    if labels is None:
        raise DataError(f"{where}: has no {keys[1]} beside it; it has {', '.join(arrays)}")
    is_image = images.dtype == np.uint8 and (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3)))
    if not is_image:
        raise DataError(f"{where}: must be uint8 [n, H, W] or [n, H, W, 3]; is {images.dtype} {list(images.shape)}")
    if len(images) != len(labels):
        raise DataError(f"{where}: {len(images)} images and {len(labels)} labels")
    if labels.ndim == 2:
        return LabeledImages(images, *_sets(labels, names, where), where)
    if labels.dtype.kind in "US":
        return LabeledImages(images, *from_names([str(value) for value in labels], where), where)
    return LabeledImages(images, *_numbers(labels, names, where), where)


def _numbers(labels: np.ndarray, names: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels must be whole numbers or names [n]; are {labels.dtype} {list(labels.shape)}")
    if names is None:
        return from_names([str(int(value)) for value in labels], where)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise DataError(f"{where}: labels from {labels.min()} to {labels.max()}, but {len(names)} class_names")
    return labels.astype(np.int32), names


def _sets(labels: np.ndarray, names: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    names = names or sorted_names({str(i) for i in range(labels.shape[1])})
    if len(names) != labels.shape[1] or not np.isin(labels, (0, 1)).all():
        raise DataError(f"{where}: labels [n, C] must be 0 and 1 with a name for each of the {labels.shape[1]} columns")
    return labels.astype(np.float32), names
