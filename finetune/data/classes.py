"""One table of classes for all splits: the training split's, matched by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from finetune.data.labeled_images import LabeledImages, Split
from finetune.errors import DataError, listed


def align_classes(sources: Mapping[str, LabeledImages]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits with labels in terms of the training split's classes, and the names of these classes.

    Raises:
        DataError: there are fewer than two classes, a split has a class that training does not have, or it has no
            images of a class (with many labels per image, only training needs images of each).
    """
    names = sources["train"].names
    if len(names) < 2:
        raise DataError(f"{sources['train'].where}: needs at least two classes; has {', '.join(names) or 'none'}")
    splits = {}
    for split, source in sources.items():
        present = _classes_present(source)
        if unknown := [name for name in present if name not in names]:
            raise DataError(
                f"{source.where}: classes that training does not have: {listed(unknown)}; it has: {listed(names)}"
            )
        may_lack_classes = source.labels.ndim == 2 and split != "train"
        if not may_lack_classes and (missing := [name for name in names if name not in present]):
            raise DataError(f"{source.where}: no images of {listed(missing)}; each class needs some in every split")
        splits[split] = Split(source.images, _relabel(source, names))
    return splits, names


def _classes_present(source: LabeledImages) -> list[str]:
    labels = source.labels
    present = np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels)
    return [source.names[int(i)] for i in present]


def _relabel(source: LabeledImages, names: tuple[str, ...]) -> np.ndarray:
    """The labels in terms of ``names``, which may lack declared classes without images."""
    index = {name: i for i, name in enumerate(names)}
    if source.labels.ndim == 1:
        new_labels = np.array([index.get(name, -1) for name in source.names], np.int32)
        return new_labels[source.labels]
    known = [i for i, name in enumerate(source.names) if name in index]
    labels = np.zeros((len(source.labels), len(names)), np.float32)
    labels[:, [index[source.names[i]] for i in known]] = source.labels[:, known]
    return labels
