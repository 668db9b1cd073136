"""One table of classes for all splits: the training split's, matched by name; and what is said of rare classes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from finetune.data.labeled_images import LabeledImages, Split, count_classes
from finetune.errors import DataError, listed


def align_classes(sources: Mapping[str, LabeledImages]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits with labels in terms of the training split's classes, and the names of these classes.

    Raises:
        DataError: there are fewer than two classes, or a split has a class that training does not have.
    """
    names = sources["train"].names
    if len(names) < 2:
        raise DataError(f"{sources['train'].where}: needs at least two classes; has {listed(names) or 'none'}")
    splits, known = {}, set(names)
    for split, source in sources.items():
        if unknown := [name for name in classes_present(source) if name not in known]:
            raise DataError(
                f"{source.where}: classes that training does not have: {listed(unknown)}; it has: {listed(names)}; "
                "add training images of them, or leave out their images: data.rare_classes=drop"
            )
        splits[split] = Split(source.images, relabel(source.labels, source.names, names), source.stats)
    return splits, names


def drop_rare(
    sources: Mapping[str, LabeledImages], least: int
) -> tuple[dict[str, LabeledImages], tuple[str, ...], tuple[str, ...]]:
    """The sources without classes that have fewer than ``least`` training images, and without their images.

    Returns:
        sources, lines about what was dropped, and a line for each image that was.
    """
    train = sources["train"]
    counts = count_classes(train.labels, len(train.names))
    kept = dict.fromkeys(name for name, count in zip(train.names, counts, strict=True) if count >= least)
    dropped, notes, left_out = {}, [], []
    for split, source in sources.items():
        rare = [name for name in classes_present(source) if name not in kept]
        if rare:
            notes.append(f"{source.where}: dropped, as rare in training: {listed(rare)}")
        dropped[split], lines = _only(source, kept)
        left_out += lines
    present = set(classes_present(train))
    if unused := [name for name in train.names if name not in kept and name not in present]:
        notes.append(f"{train.where}: dropped, as they have no training images: {listed(unused)}")
    return dropped, tuple(notes), tuple(left_out)


def _only(source: LabeledImages, kept: Collection[str]) -> tuple[LabeledImages, list[str]]:
    """The images of some classes, in terms of these, and a line for each other image."""
    split = Split(source.images, source.labels, source.stats)
    if source.labels.ndim == 2:  # an image without a rare class is still an image of its others
        return replace(source, labels=relabel(source.labels, source.names, [*kept]), names=tuple(kept)), []
    usable = np.isin(source.labels, [i for i, name in enumerate(source.names) if name in kept])
    lines = [
        f"{split.name(int(i))}: of the rare class {source.names[source.labels[i]]!r}" for i in np.flatnonzero(~usable)
    ]
    some = split.take(np.flatnonzero(usable))
    labels = relabel(some.labels, source.names, [*kept])
    return replace(source, images=some.images, labels=labels, names=tuple(kept), stats=some.stats), lines


def describe_similar(names: tuple[str, ...]) -> Iterator[str]:
    """Lines about classes that differ by case or spaces alone."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(name.casefold().split()), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            yield f"classes that differ by case or spaces alone are kept apart: {', '.join(map(repr, group))}"


def describe_rare(splits: Mapping[str, Split], names: tuple[str, ...]) -> Iterator[str]:
    """Lines about classes without images in some split, and what follows; and about those with one training image."""
    for split, images in splits.items():
        counts = count_classes(images.labels, len(names))
        none = [name for name, count in zip(names, counts, strict=True) if count == 0]
        one = [name for name, count in zip(names, counts, strict=True) if count == 1]
        if none and split == "train":
            yield f"no training images of {listed(none)}: the model cannot learn them"
        elif none:
            yield f"no {split} images of {listed(none)}: {split} results say nothing about them"
        if one and split == "train" and images.labels.ndim == 1:
            yield f"one training image of {listed(one)}: expect little of them"


def classes_present(source: LabeledImages) -> list[str]:
    """The names of the classes that have images."""
    labels = source.labels
    present = np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels)
    return [source.names[int(i)] for i in present]


def relabel(labels: np.ndarray, names: Sequence[str], new_names: Sequence[str]) -> np.ndarray:
    """Labels in terms of other names, among which are those of all classes that have images.

    Args:
        labels: int [n], or float32 [n, C] of 0 and 1, in terms of ``names``.

    Returns:
        int32 [n], or float32 [n, len(new_names)].
    """
    index = {name: i for i, name in enumerate(new_names)}
    if labels.ndim == 1:
        return np.array([index.get(name, -1) for name in names], np.int32)[labels]
    known = [i for i, name in enumerate(names) if name in index]
    relabeled = np.zeros((len(labels), len(new_names)), np.float32)
    relabeled[:, [index[names[i]] for i in known]] = labels[:, known]
    return relabeled
