"""The images of a source for a model that is there already: its classes are matched to the model's by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.data.classes import classes_present, relabel
from finetune.data.image_scan import scan_images
from finetune.data.labeled_images import LabeledImages, Split, concatenate
from finetune.data.sources import read_source
from finetune.data.splits import check_that_images_are_left, drop_broken
from finetune.errors import DataError, listed
from finetune.files import cache_folder
from finetune.recipe import DataConfig
from finetune.tracking import Track


@dataclass(frozen=True)
class KnownImages:
    """Images with the model's labels, the numbers of broken images and of other files left out, and what is said."""

    images: Split
    skipped: int
    left_out: int
    notes: tuple[str, ...]


def read_known_images(
    config: DataConfig,
    split: str | None,
    class_names: Sequence[str],
    multi_label: bool,
    track: Track,
    *,
    verify: bool = False,
) -> KnownImages:
    """All images of a source, or those of one of its splits.

    Args:
        class_names: of the model; the source may have some of them.
        multi_label: the model was trained for images with several labels.
        verify: read every image again, whatever is cached.

    Raises:
        DataError: the source has classes that the model does not know, or images with several labels where the model
            was trained for one, or the reverse; there is no such split; or no image can be used.
    """
    sources = read_source(config, verify=verify)
    if split is not None and split not in sources:
        raise DataError(f"{config.source}: has no {split} split; it has: {', '.join(sources)}")
    chosen: dict[str, LabeledImages] = sources if split is None else {split: sources[split]}
    if multi_label:
        chosen = {name: images.as_sets() for name, images in chosen.items()}
    _check_classes(config, chosen, class_names, multi_label)
    relabeled = {
        name: Split(images.images, relabel(images.labels, images.names, class_names)) for name, images in chosen.items()
    }
    scanned = {
        name: scan_images(images, cache_folder(), track, name, verify=verify) for name, images in relabeled.items()
    }
    usable, skipped = drop_broken(scanned, skip=config.on_broken_image == "skip")
    where = config.source if split is None else f"{config.source}: the {split} split"
    check_that_images_are_left(where, scanned.values(), usable.values())
    left_out = sum(len(images.left_out) for images in sources.values())
    notes = tuple(line for images in sources.values() for line in images.notes)
    return KnownImages(
        concatenate([images for images in usable.values() if len(images)]), len(skipped), left_out, notes
    )


def _check_classes(
    config: DataConfig, sources: dict[str, LabeledImages], class_names: Sequence[str], multi_label: bool
) -> None:
    used = {name for images in sources.values() for name in classes_present(images)}
    if unknown := sorted(used - set(class_names)):
        raise DataError(
            f"{config.source}: classes that the model does not know: {listed(unknown)}; "
            f"it knows: {', '.join(class_names)}"
        )
    several = any(images.labels.ndim == 2 for images in sources.values())
    if several != multi_label:
        labels = {False: "one class for each image", True: "several classes for an image"}
        raise DataError(f"{config.source}: has {labels[several]}; the model was trained for {labels[multi_label]}")
