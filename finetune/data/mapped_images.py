"""Images in memory, written to a file that worker processes map: none of them gets a copy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.labeled_images import EncodedImages, Split
from finetune.errors import CheckpointError
from finetune.files import folder_written_atomically, hash_bytes, require_space, written_atomically
from finetune.trees import hash_array

_SMALL = 2**24  # bytes that may be copied


class MappedImages:
    """uint8 arrays of one size, [n, H, W] or [n, H, W, 3], in an ``.npy`` file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._pixels: np.ndarray | None = None

    @property
    def _mapped(self) -> np.ndarray:
        if self._pixels is None:
            self._pixels = np.load(self._file, mmap_mode="r", allow_pickle=False)
        return self._pixels

    def __len__(self) -> int:
        return len(self._mapped)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(self._mapped[index])

    def __getstate__(self) -> dict[str, Any]:  # a process maps the file itself
        return {"_file": self._file, "_pixels": None}


def for_processes(split: Split, folder: Path) -> Split:
    """The same images, of which processes need no copy; those in files, few ones, and all where the disk has no room,
    stay as they are.

    Args:
        folder: of the cache; what is there by its content is used again.
    """
    images = split.images
    try:
        if isinstance(images, np.ndarray) and images.nbytes > _SMALL:
            return replace(split, images=_map_array(images, folder))
        if isinstance(images, EncodedImages) and not images.dataset.cache_files and images.dataset.data.nbytes > _SMALL:
            return replace(split, images=images.on(_save_dataset(images.dataset, folder)))
    except (OSError, CheckpointError):
        pass
    return split


def _map_array(images: np.ndarray, folder: Path) -> MappedImages:
    array = np.ascontiguousarray(images)
    file = folder / f"{hash_array(array)[:32]}.npy"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        require_space(folder, array.nbytes)
        with written_atomically(file) as beside, beside.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
    return MappedImages(file)


def _save_dataset(dataset: Any, folder: Path) -> Any:
    """A dataset in memory, from a folder that holds its rows."""
    from datasets import load_from_disk

    place = folder / hash_bytes(str(dataset._fingerprint).encode())[:32]
    if not place.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        require_space(folder, dataset.data.nbytes)
        with folder_written_atomically(place) as fresh:
            dataset.save_to_disk(str(fresh))
    return load_from_disk(str(place))
