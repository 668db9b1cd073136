"""Training, validation and test images of a run, under one table of classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from finetune.data.classes import align_classes, describe_rare, describe_similar, drop_rare
from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import LabeledImages, Split, count_classes
from finetune.data.sources import read_source
from finetune.data.stratify import stratified_split
from finetune.errors import DataError, listed
from finetune.files import cache_folder
from finetune.recipe import DataConfig
from finetune.tracking import Track, untracked

_MAX_LISTED = 10  # broken images in an error message


@dataclass(frozen=True)
class Splits:
    """The splits of a run.

    Attributes:
        validation: None if the run holds out no validation images.
        skipped: "<split of the source>: <image>: <reason>" for each broken image that was left out.
        left_out: "<path>: <reason>" for each file of the source that is not used.
        notes: lines for the person who gave the source: how it was understood, and what follows from its classes.
    """

    train: Split
    validation: Split | None
    test: Split
    class_names: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def multi_label(self) -> bool:
        return self.train.multi_label

    def named(self) -> dict[str, Split]:
        """The splits by name, without a validation split that is None."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    def skipped_from(self, name: str) -> int:
        """The number of broken images that were left out of one split of the source."""
        return sum(line.startswith(f"{name}: ") for line in self.skipped)

    @property
    def sha256(self) -> str:
        """Over the class names and every image's content and label, in order."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for name, split in self.named().items():
            digest.update(f"{name} {len(split)}\n".encode())
            digest.update(split.labels.tobytes())
            if split.stats is not None:
                digest.update(split.stats.content_hash.tobytes())
        return digest.hexdigest()


def load_splits(
    config: DataConfig, seed: int, memory: Any = None, track: Track = untracked, *, verify: bool = False
) -> Splits:
    """Reads the source, decodes every image once to check it, and makes the splits that the source lacks.

    Validation images and shots depend on ``seed``. The test split does not, so that runs with different seeds are
    evaluated on the same images.

    Args:
        memory: the datasets themselves, for ``source: memory``.
        track: shows how far the check of the images is.
        verify: read every image again, whatever is cached.

    Raises:
        DataError: the source or one of its splits is missing or empty, images are broken, the splits' classes do not
            agree, or there are too few images for the splits.
    """
    sources, notes, left_out = _read(config, memory, verify)
    aligned, class_names = align_classes(sources)
    scanned = {name: scan_images(split, cache_folder(), track, name, verify=verify) for name, split in aligned.items()}
    usable, skipped = drop_broken(scanned, skip=config.on_broken_image == "skip")
    for name, split in usable.items():
        check_that_images_are_left(f"data: the {name} split", [scanned[name]], [split])
    if config.rare_classes != "drop":
        _check_that_classes_are_left(scanned["train"], usable["train"], class_names)
    elif skipped:  # some classes may be rare by now
        named = {
            name: replace(sources[name], images=split.images, labels=split.labels, names=class_names, stats=split.stats)
            for name, split in usable.items()
        }
        kept, dropped, lines = _drop_rare(config, named)
        usable, class_names = align_classes(kept)
        notes, left_out = (*notes, *dropped), (*left_out, *lines)
    splits = make_splits(config, usable, class_names, seed)
    rare = tuple(describe_rare(splits.named(), class_names))
    if rare and config.rare_classes == "error":
        raise DataError("\n".join([*rare, "add images of these classes, or allow it: data.rare_classes=keep"]))
    notes = (*notes, *describe_similar(class_names), *rare)
    return replace(splits, skipped=skipped, left_out=left_out, notes=notes)


def _read(
    config: DataConfig, memory: Any = None, verify: bool = False
) -> tuple[dict[str, LabeledImages], tuple[str, ...], tuple[str, ...]]:
    """The splits of the source, without the classes that are to be dropped; notes; and lines about what is left out."""
    sources = read_source(config, memory, verify=verify)
    notes = tuple(line for source in sources.values() for line in source.notes)
    left_out = tuple(line for source in sources.values() for line in source.left_out)
    if config.rare_classes != "drop":
        return sources, notes, left_out
    kept, dropped, lines = _drop_rare(config, sources)
    return kept, (*notes, *dropped), (*left_out, *lines)


def _drop_rare(
    config: DataConfig, sources: dict[str, LabeledImages]
) -> tuple[dict[str, LabeledImages], tuple[str, ...], tuple[str, ...]]:
    """As :func:`drop_rare`.

    Raises:
        DataError: none of the images of a split are left.
    """
    kept, notes, left_out = drop_rare(sources, 2 if _takes_from_training(config, sources) else 1)
    for name, images in kept.items():
        if name != "train" and len(sources[name].labels) and not len(images.labels):
            raise DataError(
                f"data.rare_classes=drop: leaves no images in the {name} split, as all are of classes that are rare in "
                "training; add training images of them, or leave this split out"
            )
    return kept, notes, left_out


def _takes_from_training(config: DataConfig, sources: Mapping[str, LabeledImages]) -> bool:
    """Whether the test or validation images are taken from the training images."""
    holds_out = config.validation > 0 and config.shots_per_class is None
    return "test" not in sources or (holds_out and "validation" not in sources)


def class_names_of(config: DataConfig) -> tuple[str, ...]:
    """The classes of a source, without decoding an image.

    Raises:
        DataError: as :func:`load_splits`, except for broken images and for too few.
    """
    return align_classes(_read(config)[0])[1]


def count_training_images(config: DataConfig, seed: int) -> int:
    """How many training images a run will have, if none is broken; errors as :func:`load_splits`."""
    aligned, class_names = align_classes(_read(config)[0])
    unscanned = {name: Split(images.images, images.labels) for name, images in aligned.items()}
    return len(make_splits(config, unscanned, class_names, seed).train)


def drop_broken(splits: dict[str, Split], *, skip: bool) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The scanned splits without their broken images, and a line for each image that was left out.

    Raises:
        DataError: some are broken, and ``skip`` is false.
    """
    broken = [f"{name}: {problem}" for name, split in splits.items() for problem in _problems(split)]
    if not broken:
        return splits, ()
    if not skip:
        more = [f"... and {len(broken) - _MAX_LISTED} more"] if len(broken) > _MAX_LISTED else []
        advice = "replace or remove these files, or skip them: data.on_broken_image=skip"
        raise DataError("\n".join([*broken[:_MAX_LISTED], *more, advice]))
    usable = {
        name: split.take(np.flatnonzero(split.stats.problem == "")) for name, split in splits.items() if split.stats
    }
    return usable, tuple(broken)


def describe_skipped(skipped: Sequence[str]) -> list[str]:
    """A line about broken images that are left out, if there are any."""
    return [f"{len(skipped)} broken images are left out, the first: {skipped[0]}"] if skipped else []


def check_that_images_are_left(where: str, scanned: Iterable[Split], usable: Iterable[Split]) -> None:
    """
    Args:
        where: names the images, for the message.

    Raises:
        DataError: there are none, or all are broken.
    """
    if any(map(len, usable)):
        return
    if problems := [problem for split in scanned for problem in _problems(split)]:
        raise DataError(f"{where}: its {len(problems)} images are all broken, the first: {problems[0]}; replace them")
    raise DataError(f"{where}: has no images; add some, or leave it out")


def _check_that_classes_are_left(scanned: Split, usable: Split, class_names: tuple[str, ...]) -> None:
    before, after = (count_classes(split.labels, len(class_names)) for split in (scanned, usable))
    broken = np.flatnonzero((before > 0) & (after == 0))
    if len(broken):
        of_these = np.isin(scanned.labels, broken) if scanned.labels.ndim == 1 else scanned.labels[:, broken].any(1)
        raise DataError(
            f"data: all training images of {listed([class_names[i] for i in broken])} are broken, the first: "
            f"{_problems(scanned.take(np.flatnonzero(of_these)))[0]}; each class needs some that can be used"
        )


def _problems(split: Split) -> list[str]:
    return [] if split.stats is None else split.stats.problem[split.stats.broken].tolist()


def make_splits(config: DataConfig, splits: dict[str, Split], class_names: tuple[str, ...], seed: int) -> Splits:
    """The splits of a run: those of the source, and those that are taken from its training images."""
    train, validation, test = splits["train"], splits.get("validation"), splits.get("test")
    if test is None:
        train, test = stratified_split(train, config.test, 0, "data.test")
    if config.fraction < 1:
        _, train = stratified_split(train, config.fraction, seed, "data.fraction", "part")
    if config.shots_per_class is not None:
        train = sample_shots(train, class_names, config.shots_per_class, seed)
    elif validation is None and config.validation > 0:
        train, validation = stratified_split(train, config.validation, seed, "data.validation")
    return Splits(train, validation, test, class_names)


def sample_shots(train: Split, class_names: tuple[str, ...], shots: int, seed: int) -> Split:
    """``shots`` random images of each class, in their order in ``train``.

    Raises:
        DataError: a class has fewer, or the images have many labels each.
    """
    if train.multi_label:
        raise DataError("data.shots_per_class: these images have many labels each; use data.fraction instead")
    rng = np.random.default_rng(seed)
    chosen = []
    for label, name in enumerate(class_names):
        candidates = np.flatnonzero(train.labels == label)
        if len(candidates) < shots:
            raise DataError(
                f"data.shots_per_class: {shots} asked for, but class {name!r} has {len(candidates)} training images"
            )
        chosen.append(rng.choice(candidates, shots, replace=False))
    return train.take(np.sort(np.concatenate(chosen)))
