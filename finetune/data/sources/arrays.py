"""Images that are arrays already: scikit-learn's digits and .npz files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finetune.data.labeled_images import LabeledImages
from finetune.data.sources.labels import clean_name, labels_from_names, sort_names
from finetune.data.sources.split_names import canonical_split, words_of
from finetune.errors import DataError

_IMAGES = frozenset({"x", "image", "images", "imgs", "pixels"})
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
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as arrays: {error}") from None
    except Exception as error:  # zipfile and zlib have exceptions of their own
        raise DataError(f"{path}: damaged: {error}") from None
    keys = _keys(arrays)
    if "train" not in keys:
        raise DataError(
            f"{path}: needs images and labels, or x_train and y_train (also x_val, y_val, x_test, y_test); "
            f"has {', '.join(arrays) or 'nothing'}"
        )
    class_names = tuple(clean_name(str(name)) for name in arrays["class_names"]) if "class_names" in arrays else None
    if class_names is not None and len(set(class_names)) < len(class_names):
        raise DataError(f"{path}: class_names: some are there twice; give each class a name of its own")
    splits = {split: _read_split(path, arrays, *pair, class_names) for split, pair in keys.items()}
    used = {"class_names", *(key for pair in keys.values() for key in pair)}
    unused = tuple(f"{path}: array {name!r} is not used" for name in arrays if name not in used)
    return {**splits, "train": splits["train"].with_notes(unused)}


def _keys(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, str]]:
    """The names of each split's images and labels; those without the name of a split are training data."""
    pairs: dict[str, dict[str, str]] = {}
    for name in arrays:
        words = words_of(name)
        for kind, kinds in (("images", _IMAGES), ("labels", _LABELS)):
            if kinds.intersection(words):
                rest = "_".join(word for word in words if word not in kinds)
                split = canonical_split(rest) if rest else "train"
                if split is not None:
                    pairs.setdefault(split, {}).setdefault(kind, name)
    return {split: (pair["images"], pair.get("labels", "labels")) for split, pair in pairs.items() if "images" in pair}


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
    if labels.dtype.kind in "US":
        return LabeledImages(images, *labels_from_names([str(value) for value in labels], where), where)
    return LabeledImages(images, *_from_integers(labels, class_names, where), where)


def _from_integers(labels: np.ndarray, names: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels.dtype.kind == "f" and (labels == np.round(labels)).all():
        labels = labels.astype(np.int64)
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
