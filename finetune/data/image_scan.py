"""Scanning images before training: decoding each of them once, to check it and to measure it."""

from __future__ import annotations

import hashlib
import os
import zipfile
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from finetune.data.labeled_images import THUMBNAIL_SIZE, EncodedImages, Images, ImageStats, Split
from finetune.data.workers import map_in_threads
from finetune.errors import DataError
from finetune.files import file_state, written_atomically
from finetune.images.formats import readable_formats
from finetune.images.open import open_with_mode
from finetune.tracking import Track, untracked

_FORMAT = 4  # of the cached files


def scan_images(
    split: Split, cache: Path | None = None, track: Track = untracked, name: str = "", *, verify: bool = False
) -> Split:
    """The split with its ``stats``, from the cache if no file has changed, else by decoding every image.

    Args:
        cache: the folder for stats. If it cannot be written to, the stats are not cached.
        track: shows how far it is, under the split's name.
        verify: decode every image, whatever the cache has.
    """
    file = None
    if cache is not None and (key := fingerprint(split.images)):
        # another Pillow, or one with another plugin, may read what is broken for this one
        known = f"{_FORMAT} {key} {PIL.__version__} {readable_formats()}"
        file = cache / "checks" / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.npz"
    stats = _read(file, len(split)) if file and not verify else None
    if stats is None:
        stats = _scan(split, track, name)
        if file:
            _write(file, stats)
    return replace(split, stats=stats)


def fingerprint(images: Images) -> str | None:
    """A hash over the path and the state of every file; None for images in memory."""
    digest = hashlib.sha256()
    if isinstance(images, EncodedImages):
        if images.fingerprint is None:
            return None
        digest.update(images.fingerprint.encode())
        paths: Any = images.paths
    elif isinstance(images, np.ndarray) or not all(isinstance(images[i], Path) for i in range(len(images))):
        return None
    else:
        paths = images
    for path in paths:
        digest.update(os.fsencode(path.absolute()) + f"\0{file_state(path)}\n".encode())
    return digest.hexdigest()


def _scan(split: Split, track: Track, name: str) -> ImageStats:
    scanned = map_in_threads(lambda i: _scan_image(split, i), len(split))  # Pillow releases the GIL while it decodes
    rows = list(track(scanned, f"checking {name} images", len(split)))
    columns: Any = list(zip(*rows, strict=True)) if rows else [()] * len(fields(ImageStats))
    dtypes: Any = (str, np.int32, np.int32, str, np.uint8, np.uint64, np.uint64, np.uint8)
    return ImageStats(*(np.array(column, dtype) for column, dtype in zip(columns, dtypes, strict=True)))


_NO_HASH = np.zeros(hashlib.sha256().digest_size, np.uint8)
_NO_THUMBNAIL = np.zeros((THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3), np.uint8)


def _scan_image(split: Split, index: int) -> tuple[Any, ...]:
    """The fields of :class:`ImageStats`, for one image."""
    stored = split.images[index]
    try:
        image, mode = open_with_mode(stored)
        content_hash = _hash_content(stored)
    except DataError as error:
        name, problem = split.name(index), str(error)
        problem = problem if problem.startswith(name) else f"{name}: {problem}"
        return problem, 0, 0, "", _NO_HASH, 0, 0, _NO_THUMBNAIL
    pixel_hash = hashlib.blake2b(image.tobytes(), digest_size=8, person=b"%dx%d" % image.size).digest()
    small = image.resize((16, 16), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BILINEAR))
    difference_hash = np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes()
    thumbnail = np.asarray(small.resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BOX))
    hashes = (int.from_bytes(digest, "little") for digest in (pixel_hash, difference_hash))
    return ("", *image.size, mode, content_hash, *hashes, thumbnail)


def _hash_content(image: Path | bytes | np.ndarray) -> np.ndarray:
    """SHA-256 as uint8 [32].

    Raises:
        DataError: the file is gone.
    """
    if isinstance(image, Path):
        try:
            with image.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise DataError(f"{image}: cannot be read: {error.strerror}") from None
    elif isinstance(image, bytes):
        digest = hashlib.sha256(image)
    else:
        digest = hashlib.sha256(f"{image.dtype} {image.shape}\n".encode())
        digest.update(np.ascontiguousarray(image).data)
    return np.frombuffer(digest.digest(), np.uint8)


def _read(file: Path, count: int) -> ImageStats | None:
    """None if the file is missing or cannot be used."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            stats = ImageStats(**{field.name: arrays[field.name] for field in fields(ImageStats)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return stats if len(stats.problem) == count else None


def _write(file: Path, stats: ImageStats) -> None:
    """A cache that cannot be written to is no error."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_atomically(file) as beside, beside.open("wb") as stream:
            np.savez(stream, **vars(stats))
