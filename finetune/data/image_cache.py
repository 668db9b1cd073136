"""Training images that are decoded once, at a reduced size, and kept on disk as pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.labeled_images import Images, Split
from finetune.data.workers import map_in_threads
from finetune.errors import DataError
from finetune.files import folder_written_atomically, require_space
from finetune.images.open import open_image


class CachedImages:
    """uint8 arrays [H, W, 3] of different sizes, concatenated in a memory-mapped file.

    Attributes:
        shortest_edge: pixels to which larger images were shrunk.
    """

    def __init__(self, folder: Path, shortest_edge: int) -> None:
        self._folder, self.shortest_edge = folder, shortest_edge
        index = np.load(folder / "index.npy", allow_pickle=False)
        self._start, self._shape = index[:, 0], index[:, 1:]
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, i: int) -> np.ndarray:
        if self._pixels is None:
            self._pixels = np.memmap(self._folder / "pixels", np.uint8, mode="r")
        height, width = self._shape[i]
        start = self._start[i]
        return np.asarray(self._pixels[start : start + height * width * 3]).reshape(height, width, 3)

    def __getstate__(self) -> dict[str, Any]:  # without the pixels: a worker process maps the file itself
        return {**self.__dict__, "_pixels": None}


def cached(split: Split, size: int, folder: Path, *, verify: bool = False) -> Split:
    """The scanned split with its images from a cache in ``folder``, which is written first if it is missing.

    Args:
        size: pixels of the shorter edge to which larger images are shrunk.
        verify: write the cache again.

    Raises:
        DataError: an image cannot be decoded.
        CheckpointError: the disk has too little room.
    """
    if isinstance(split.images, np.ndarray):
        return split  # nothing to decode
    assert split.stats is not None
    contents = hashlib.sha256(split.stats.content_hash.tobytes()).hexdigest()
    target = folder / "images" / hashlib.sha256(f"{contents} {size}".encode()).hexdigest()[:32]
    if verify or not (target / "index.npy").is_file():
        _write(split, size, target)
    return Split(CachedImages(target, size), split.labels, split.stats)


def _write(split: Split, size: int, target: Path) -> None:
    require_space(target, len(split) * size * size * 4)  # 3 channels at an aspect ratio of 4:3
    target.parent.mkdir(parents=True, exist_ok=True)
    rows, start = [], 0
    with folder_written_atomically(target) as folder:
        with (folder / "pixels").open("wb") as file:
            for array in _decoded(split, size):
                file.write(array.tobytes())
                rows.append((start, *array.shape[:2]))
                start += array.size
        np.save(folder / "index.npy", np.array(rows, np.int64))


def _decoded(split: Split, size: int) -> Iterator[np.ndarray]:
    images: Images = split.images

    def decode(i: int) -> np.ndarray:
        try:
            return _shrink(open_image(images[i]), size)
        except DataError as error:
            raise DataError(f"{split.name(i)}: {error}") from None

    return map_in_threads(decode, len(split))


def _shrink(image: Image.Image, size: int) -> np.ndarray:
    short = min(image.size)
    if short > size:
        width, height = (max(1, round(edge * size / short)) for edge in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image)
