"""Images with labels, in one split of a source or of a run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

THUMBNAIL = 8  # pixels along each edge


class Images(Protocol):
    """Indexed from 0 to ``len``: paths, encoded files, or uint8 arrays [H, W] or [H, W, 3]; a list and an array are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class EncodedImages:
    """The image column of a ``datasets.Dataset``: encoded bytes, or paths; read when asked for."""

    def __init__(self, dataset: Any, column: str) -> None:
        """
        Args:
            dataset: whose ``column`` gives ``{"bytes": ..., "path": ...}``.
        """
        self._dataset, self._column = dataset, column

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> bytes | Path:
        item = self._dataset[int(index)][self._column]
        if item is None:
            return b""
        return item["bytes"] if item["bytes"] is not None else Path(item["path"])

    def take(self, indices: np.ndarray) -> EncodedImages:
        return EncodedImages(self._dataset.select(indices), self._column)

    def name(self, index: int) -> str:
        path = (self._dataset[int(index)][self._column] or {}).get("path")
        return f"row {index}" + (f" ({path})" if path else "")

    @property
    def fingerprint(self) -> str | None:
        """Of the rows and what they hold, as ``datasets`` keeps it; None for a dataset in memory."""
        return str(self._dataset._fingerprint) if self._dataset.cache_files else None


@dataclass(frozen=True)
class ImageStats:
    """What was seen of n images.

    Attributes:
        problem: str [n], empty where the image can be used.
        width, height: int32 [n], in pixels, after the EXIF orientation.
        mode: str [n], Pillow's, as stored.
        pixels: uint64 [n], hash of the decoded pixels.
        outline: uint64 [n], difference hash: which of 64 neighbouring grey values is the larger.
        thumbnail: uint8 [n, 8, 8, 3].
    """

    problem: np.ndarray
    width: np.ndarray
    height: np.ndarray
    mode: np.ndarray
    pixels: np.ndarray
    outline: np.ndarray
    thumbnail: np.ndarray

    def take(self, indices: np.ndarray) -> ImageStats:
        return ImageStats(**{field.name: getattr(self, field.name)[indices] for field in fields(self)})

    @property
    def bad(self) -> np.ndarray:
        """Indices of images that cannot be used."""
        return np.flatnonzero(self.problem != "")


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        images: paths, encoded files, or uint8 arrays [H, W] or [H, W, 3].
        labels: int32 [n], indices into the class names; or float32 [n, C] of 0 and 1, for images with many labels.
        facts: what a check of the images saw.
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
        images = self.images
        if isinstance(images, EncodedImages):
            chosen: Images = images.take(indices)
        else:
            chosen = images[indices] if isinstance(images, np.ndarray) else [images[int(i)] for i in indices]
        return Split(chosen, self.labels[indices], None if self.stats is None else self.stats.take(indices))

    def name(self, index: int) -> str:
        """Of one image, for messages."""
        if isinstance(self.images, EncodedImages):
            return self.images.name(index)
        image = self.images[index]
        return str(image) if isinstance(image, Path) else f"image {index}"


def count_classes(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """int [num_classes]: images of each class."""
    return labels.sum(0).astype(int) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)
