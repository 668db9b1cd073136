"""StageTrainer, validation and test images under one table of classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import Split, count_classes
from finetune.data.sources import LabeledImages, read_source
from finetune.errors import DataError, listed
from finetune.files import cache_folder
from finetune.recipe import DataConfig


@dataclass(frozen=True)
class Splits:
    train: Split
    validation: Split | None
    test: Split
    class_names: tuple[str, ...]
    skipped: tuple[str, ...] = ()  # broken images that were left out, and why, by split

    @property
    def multi_label(self) -> bool:
        return self.train.multi_label

    def skipped_from(self, name: str) -> int:
        """How many broken images were left out of one split of the source."""
        return sum(line.startswith(f"{name}: ") for line in self.skipped)

    @property
    def sha256(self) -> str:
        """Of every image's pixels and label, in order, and of the class names."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for name, split in self.named().items():
            digest.update(f"{name} {len(split)}\n".encode())
            digest.update(split.labels.tobytes())
            if split.stats is not None:
                digest.update(split.stats.pixels.tobytes())
        return digest.hexdigest()

    def named(self) -> dict[str, Split]:
        """Those that there are, by name."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}


def load_splits(config: DataConfig, seed: int, memory: Any = None) -> Splits:
    """Reads the source, looks at every image, and makes the splits that it lacks, stratified by class.

    The test split does not depend on ``seed``, so that runs with different seeds are measured on the same images;
    validation images and shots do.

    Args:
        memory: the datasets themselves, for ``source: memory``.

    Raises:
        DataError: a source that is missing or empty, images that are broken, classes that do not agree, or too few
            images for the splits.
    """
    found, names = align_classes(read_source(config, memory))
    found = {split: scan_images(images, cache_folder()) for split, images in found.items()}
    found, skipped = drop_broken(found, names, skip=config.on_broken_image == "skip")
    return replace(make_splits(config, found, names, seed), skipped=skipped)


def drop_broken(
    found: dict[str, Split], names: tuple[str, ...], *, skip: bool
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits without broken images, and what was left out.

    Raises:
        DataError: listing them, where none may be skipped, or naming a class of which nothing would be left.
    """
    bad = [f"{name}: {text}" for name, split in found.items() for text in _problems(split)]
    if not bad:
        return found, ()
    if not skip:
        more = [f"... and {len(bad) - 10} more"] if len(bad) > 10 else []
        raise DataError(
            "\n".join([*bad[:10], *more, "replace or remove these files, or leave them out: data.on_broken_image=skip"])
        )
    kept = {name: split.take(np.flatnonzero(split.stats.problem == "")) for name, split in found.items() if split.stats}
    empty = np.flatnonzero(count_classes(kept["train"].labels, len(names)) == 0)
    if len(empty):
        raise DataError(f"data: without broken images nothing is left of {listed([names[i] for i in empty])}")
    return kept, tuple(bad)


def _problems(split: Split) -> list[str]:
    return [] if split.stats is None else split.stats.problem[split.stats.bad].tolist()


def class_names_of(config: DataConfig) -> tuple[str, ...]:
    """The classes of a source, without decoding an image; raises DataError as :func:`load_splits` does."""
    return align_classes(read_source(config))[1]


def align_classes(found: Mapping[str, LabeledImages]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits under training's classes, matched by name.

    Raises:
        DataError: naming classes that training does not have, and classes without images.
    """
    names = found["train"].names
    if len(names) < 2:
        raise DataError(f"{found['train'].where}: needs at least two classes; has {', '.join(names) or 'none'}")
    splits = {}
    for split, labelled in found.items():
        present = _present(labelled)
        if unknown := [name for name in present if name not in names]:
            raise DataError(
                f"{labelled.where}: classes that training does not have: {listed(unknown)}; it has: {listed(names)}"
            )
        rare = labelled.labels.ndim == 2 and split != "train"  # with many labels, a small split may well lack one
        if not rare and (missing := [name for name in names if name not in present]):
            raise DataError(f"{labelled.where}: no images of {listed(missing)}; each class needs some in every split")
        splits[split] = Split(labelled.images, _relabel(labelled, names))
    return splits, names


def _present(labelled: LabeledImages) -> list[str]:
    seen = np.flatnonzero(labelled.labels.any(axis=0)) if labelled.labels.ndim == 2 else np.unique(labelled.labels)
    return [labelled.names[int(i)] for i in seen]


def _relabel(labelled: LabeledImages, names: tuple[str, ...]) -> np.ndarray:
    """Labels in terms of ``names``; classes that no image has may be unknown there."""
    index = {name: i for i, name in enumerate(names)}
    if labelled.labels.ndim == 1:
        to_table = np.array([index.get(name, -1) for name in labelled.names], np.int32)
        return to_table[labelled.labels]
    known = [i for i, name in enumerate(labelled.names) if name in index]
    labels = np.zeros((len(labelled.labels), len(names)), np.float32)
    labels[:, [index[labelled.names[i]] for i in known]] = labelled.labels[:, known]
    return labels


def make_splits(config: DataConfig, splits: dict[str, Split], class_names: tuple[str, ...], seed: int) -> Splits:
    """The splits of a run, made from those of the source."""
    train, test = splits["train"], splits.get("test")
    if test is None:
        train, test = _divide(train, config.test, 0, "test")
    whole = Splits(train, splits.get("validation"), test, class_names)
    if config.fraction < 1:
        whole = replace(whole, train=_divide(train, config.fraction, seed, "fraction")[1])
    if config.shots_per_class is not None:
        return replace(whole, train=sample_shots(whole, config.shots_per_class, seed))
    if whole.validation is None and config.validation > 0:
        train, validation = _divide(whole.train, config.validation, seed, "validation")
        whole = replace(whole, train=train, validation=validation)
    return whole


def sample_shots(splits: Splits, shots: int, seed: int) -> Split:
    if splits.multi_label:
        raise DataError("data.shots_per_class: images here have many labels each; use data.fraction instead")
    rng = np.random.default_rng(seed)
    chosen = []
    for label, name in enumerate(splits.class_names):
        found = np.flatnonzero(splits.train.labels == label)
        if len(found) < shots:
            raise DataError(
                f"data.shots_per_class: {shots} asked for, but class {name!r} has {len(found)} training images"
            )
        chosen.append(rng.choice(found, shots, replace=False))
    return splits.train.take(np.sort(np.concatenate(chosen)))


def _divide(split: Split, fraction: float, seed: int, name: str) -> tuple[Split, Split]:
    """(rest, part): ``fraction`` of the images of each class go to the part."""
    from sklearn.model_selection import train_test_split

    if split.multi_label:
        return _divide_sets(split, fraction, seed)
    try:
        rest, part = train_test_split(
            np.arange(len(split)), test_size=fraction, random_state=seed, stratify=split.labels
        )
    except ValueError as error:
        raise DataError(
            f"data.{name}: cannot take {fraction:g} of {len(split)} images in {len(np.unique(split.labels))} classes: "
            f"{error}"
        ) from None
    return split.take(np.sort(rest)), split.take(np.sort(part))


def _divide_sets(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Iterative stratification (Sechidis et al. 2011): the rarest class first, each image where that lacks most."""
    labels = split.labels.astype(bool)
    order = np.random.default_rng(seed).permutation(len(labels))
    shares = np.array([1 - fraction, fraction])
    wanted = shares[:, None] * labels.sum(0)  # of each class
    room = shares * len(labels)  # of images
    side = np.full(len(labels), -1)
    while (open_ := order[side[order] < 0]).size:
        counts = labels[open_].sum(0)
        rare = int(np.where(counts > 0, counts, np.iinfo(int).max).argmin())
        group = open_[labels[open_, rare]] if counts[rare] else open_
        for i in group:
            lacking = wanted[:, rare] if counts[rare] else room
            best = int(np.lexsort((room, lacking))[-1])
            side[i] = best
            wanted[best] -= labels[i]
            room[best] -= 1
    return split.take(np.flatnonzero(side == 0)), split.take(np.flatnonzero(side == 1))
