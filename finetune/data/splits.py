"""Training, validation and test images under one table of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finetune.data.images import EXTENSIONS, check_headers
from finetune.errors import DataError, nearest
from finetune.recipe import DataConfig

_DIGITS = tuple("0123456789")
_TRAIN, _VALIDATION, _TEST = ("train", "training"), ("validation", "val", "valid"), ("test",)


@dataclass(frozen=True)
class Split:
    """Images with labels: paths or uint8 arrays [H, W] or [H, W, 3], and int32 indices into the class names."""

    images: Sequence[Path] | np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        images = self.images[indices] if isinstance(self.images, np.ndarray) else [self.images[i] for i in indices]
        return Split(images, self.labels[indices])


@dataclass(frozen=True)
class Splits:
    train: Split
    validation: Split | None
    test: Split
    class_names: tuple[str, ...]


def load_splits(config: DataConfig, seed: int) -> Splits:
    """Reads the source and makes the splits that it lacks, stratified by class.

    The test split does not depend on ``seed``, so that runs with different seeds are measured on the same images;
    validation images and shots do.

    Raises:
        DataError: a source that is missing or empty, images that are not, classes that do not agree, or too few
            images for the splits asked for.
    """
    splits = NAMED_SOURCES.get(config.source, _folder)(config)
    if config.shots_per_class is not None:
        splits = replace(splits, train=_few(splits, config.shots_per_class, seed))
    elif splits.validation is None and config.validation > 0:
        train, validation = _divide(splits.train, config.validation, seed, "validation")
        splits = replace(splits, train=train, validation=validation)
    return splits


def class_names_of(config: DataConfig) -> tuple[str, ...]:
    """The classes of a source, without reading an image; raises DataError as :func:`load_splits` does."""
    return _DIGITS if config.source in NAMED_SOURCES else _class_folders(config)[2]


def _few(splits: Splits, shots: int, seed: int) -> Split:
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


def _digits(config: DataConfig) -> Splits:
    """scikit-learn's 1,797 handwritten digits (UCI optdigits), 8x8 pixels in 17 shades."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    train, test = _divide(Split(images, data.target.astype(np.int32)), config.test, 0, "test")
    return Splits(train, None, test, _DIGITS)


def _folder(config: DataConfig) -> Splits:
    """A folder for each class, at the top or inside train/, validation/ and test/."""
    home, named, class_names = _class_folders(config)
    train = _labelled(home, class_names)
    validation = _labelled(named["validation"], class_names) if named["train"] and named["validation"] else None
    if named["train"] and named["test"]:
        test = _labelled(named["test"], class_names)
    else:
        train, test = _divide(train, config.test, 0, "test")
    return Splits(train, validation, test, class_names)


def _class_folders(config: DataConfig) -> tuple[Path, dict[str, Path | None], tuple[str, ...]]:
    """Where the training classes are, the folders of the splits, and the classes' names."""
    root = Path(config.source).expanduser()
    if not root.is_dir():
        known = ", ".join(NAMED_SOURCES)
        raise DataError(
            f"data.source: {config.source}: no such folder{nearest(config.source, NAMED_SOURCES)}; also: {known}"
        )
    inside = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    named = {split: next((inside[n] for n in names if n in inside), None) for split, names in _SPLIT_NAMES.items()}
    home = named["train"] or root
    class_names = tuple(sorted(path.name for path in home.iterdir() if path.is_dir() and path.name[0] != "."))
    if len(class_names) < 2:
        raise DataError(f"data.source: {home}: needs a folder for each of at least two classes; has {len(class_names)}")
    return home, named, class_names


NAMED_SOURCES: dict[str, Callable[[DataConfig], Splits]] = {"digits": _digits}
_SPLIT_NAMES = {"train": _TRAIN, "validation": _VALIDATION, "test": _TEST}


def _labelled(folder: Path, class_names: tuple[str, ...]) -> Split:
    """All images below a folder of class folders, in path order; labels by name, never by position."""
    unknown = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "." and p.name not in class_names)
    if unknown:
        raise DataError(
            f"{folder}: classes that training does not have: {', '.join(unknown)}; it has: {', '.join(class_names)}"
        )
    paths, labels = [], []
    for label, name in enumerate(class_names):
        found = sorted(p for p in (folder / name).rglob("*") if p.is_file() and p.suffix.lower() in EXTENSIONS)
        if not found:
            raise DataError(f"{folder / name}: no images ({', '.join(sorted(EXTENSIONS))}); each class needs some")
        paths += found
        labels += [label] * len(found)
    check_headers(paths)
    return Split(paths, np.array(labels, np.int32))
