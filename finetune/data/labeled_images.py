"""Images with labels: a split as a source gives it, and as a run uses it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetune.files import file_state

THUMBNAIL_SIZE = 8  # pixels along each edge


class Images(Protocol):
    """A sequence, such as a list or an array, of paths, encoded images, or uint8 arrays [H, W] or [H, W, 3]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class EncodedImages:
    """The image column of a ``datasets.Dataset``: encoded bytes or paths, read on access.

    Attributes:
        dataset: a row for each image.
    """

    def __init__(self, dataset: Any, column: str, base: Path | None = None) -> None:
        """
        Args:
            dataset: its ``column`` gives ``{"bytes": ..., "path": ...}``, or None for a missing image.
            base: the folder that paths are relative to; None for the working directory.
        """
        self.dataset, self._column, self._base = dataset, column, base

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> bytes | Path:
        item = self.dataset[int(index)][self._column]
        if item is None:
            return b""
        return item["bytes"] if item["bytes"] is not None else local_path(self._base, item["path"] or "")

    def take(self, indices: np.ndarray) -> EncodedImages:
        return self.on(self.dataset.select(indices))

    def on(self, dataset: Any) -> EncodedImages:
        """The same column of another dataset."""
        return EncodedImages(dataset, self._column, self._base)

    @property
    def paths(self) -> list[Path]:
        """The files that are read on access; none where the table holds the bytes."""
        import pyarrow.compute as pc

        column = self.dataset.data.column(self._column)
        if column.null_count == 0 and pc.struct_field(column, "bytes").null_count == 0:
            return []
        return [image for image in (self[i] for i in range(len(self))) if isinstance(image, Path)]

    def name(self, index: int) -> str:
        path = (self.dataset[int(index)][self._column] or {}).get("path")
        return f"row {index}" + (f" ({path})" if path else "")

    @property
    def fingerprint(self) -> str | None:
        """That of ``datasets``, and the state of the files that hold the rows; None for a dataset in memory."""
        files = self.dataset.cache_files
        if not files:
            return None
        states = (f"{file['filename']} {file_state(Path(file['filename']))}" for file in files)
        return "\n".join([str(self.dataset._fingerprint), *states])


def local_path(base: Path | None, path: str) -> Path:
    """A table's path, which may have Windows separators, relative to a folder."""
    given = (base or Path()) / path
    if os.sep == "/" and "\\" in path and not os.path.exists(given):  # false for what is too long
        return (base or Path()) / path.replace("\\", "/")
    return given


@dataclass(frozen=True)
class LabeledImages:
    """One split of a source, labeled in terms of the split's class names.

    Attributes:
        images: as in a :class:`Split`.
        labels: int32 [n], indices into ``names``; or float32 [n, len(names)] of 0 and 1, for images with many labels.
        names: the classes that the source declares or, where it declares none, those that occur.
        where: the source and split, for messages.
        left_out: "<path>: <reason>" for each file that is not used.
        notes: lines for the person who gave the source: what was understood where another reading is possible.
        from_sets: each label was the only one of a set, which may have had several.
        stats: None before the images are scanned.
    """

    images: Images
    labels: np.ndarray
    names: tuple[str, ...]
    where: str
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    from_sets: bool = False
    stats: ImageStats | None = None

    def with_left_out(self, lines: Sequence[str]) -> LabeledImages:
        """The same with more files that are left out."""
        return replace(self, left_out=(*lines, *self.left_out))

    def with_notes(self, lines: Sequence[str]) -> LabeledImages:
        return replace(self, notes=(*lines, *self.notes))

    def as_sets(self) -> LabeledImages:
        """The same with labels [n, len(names)] where they are from sets."""
        if not self.from_sets:
            return self
        return replace(self, labels=np.eye(len(self.names), dtype=np.float32)[self.labels], from_sets=False)


@dataclass(frozen=True)
class ImageStats:
    """Properties of n images, from decoding each of them.

    Attributes:
        problem: str [n], why an image cannot be used; empty where it can.
        width, height: int32 [n], in pixels, after the EXIF orientation is applied.
        mode: str [n], Pillow's mode of the image as stored.
        content_hash: uint8 [n, 32], SHA-256 of the image's file or encoded bytes, or of its array.
        pixel_hash: uint64 [n], of the decoded pixels.
        difference_hash: uint64 [n], one bit for each of 8 x 8 pairs of neighboring grey values: whether the right one
            is larger (dHash).
        thumbnail: uint8 [n, 8, 8, 3].
    """

    problem: np.ndarray
    width: np.ndarray
    height: np.ndarray
    mode: np.ndarray
    content_hash: np.ndarray
    pixel_hash: np.ndarray
    difference_hash: np.ndarray
    thumbnail: np.ndarray

    def take(self, indices: np.ndarray) -> ImageStats:
        return ImageStats(**{field.name: getattr(self, field.name)[indices] for field in fields(self)})

    @property
    def broken(self) -> np.ndarray:
        """Indices of the images that cannot be used."""
        return np.flatnonzero(self.problem != "")


@dataclass(frozen=True)
class Split:
    """Images and their labels, in terms of the training split's classes.

    Attributes:
        images: paths, encoded images, or uint8 arrays [H, W] or [H, W, 3].
        labels: int32 [n], indices into the class names; or float32 [n, C] of 0 and 1, for images with many labels.
        stats: None before the images are scanned.
    """

    images: Images
    labels: np.ndarray
    stats: ImageStats | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    def take(self, indices: np.ndarray) -> Split:
        """The images at these indices, in this order."""
        images = self.images
        if isinstance(images, EncodedImages):
            chosen: Images = images.take(indices)
        else:
            chosen = images[indices] if isinstance(images, np.ndarray) else [images[int(i)] for i in indices]
        return Split(chosen, self.labels[indices], None if self.stats is None else self.stats.take(indices))

    def name(self, index: int) -> str:
        """An image's path or position, for messages."""
        if isinstance(self.images, EncodedImages | _Concatenated):
            return self.images.name(index)
        image = self.images[index]
        return str(image) if isinstance(image, Path) else f"image {index}"


class _Concatenated:
    """The images of several splits, one after the other."""

    def __init__(self, splits: Sequence[Split]) -> None:
        self._splits = splits
        self._starts = np.cumsum([0, *(len(split) for split in splits)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        split, inner = self._locate(index)
        return split.images[inner]

    def name(self, index: int) -> str:
        split, inner = self._locate(index)
        return split.name(inner)

    def _locate(self, index: int) -> tuple[Split, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._splits[number], int(index - self._starts[number])


def concatenate(splits: Sequence[Split]) -> Split:
    """One split with the images of several scanned ones."""
    if len(splits) == 1:
        return splits[0]
    stats = [split.stats for split in splits if split.stats is not None]
    joined = {field.name: np.concatenate([getattr(part, field.name) for part in stats]) for field in fields(ImageStats)}
    return Split(_Concatenated(splits), np.concatenate([split.labels for split in splits]), ImageStats(**joined))


def count_classes(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """int [num_classes]: the number of images of each class."""
    return labels.sum(0).astype(int) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)
