"""Looking at every image before training: can it be decoded, and what is it like."""

from __future__ import annotations

import hashlib
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.labeled_images import THUMBNAIL, EncodedImages, Images, ImageStats, Split
from finetune.errors import DataError
from finetune.images.open import open_image

_FORMAT = 1  # of the cache's files


def scan_images(split: Split, cache: Path | None = None) -> Split:
    """The split with its ``facts``: every image fully decoded, or known from an earlier time by path, size and time of
    change of its file.

    Args:
        cache: folder in which facts are kept; one that cannot be written to is no error.
    """
    file = None
    if cache is not None and (key := fingerprint(split.images)):
        file = cache / "checks" / f"{hashlib.sha256(f'{_FORMAT} {key}'.encode()).hexdigest()[:32]}.npz"
    stats = _read(file, len(split)) if file else None
    if stats is None:
        stats = _examine_all(split)
        if file:
            _write(file, stats)
    return replace(split, stats=stats)


def fingerprint(images: Images) -> str | None:
    """Of the files that images come from; None for images in memory."""
    if isinstance(images, EncodedImages):
        return images.fingerprint
    if isinstance(images, np.ndarray):
        return None
    digest = hashlib.sha256()
    for i in range(len(images)):
        path = images[i]
        if not isinstance(path, Path):
            return None
        try:
            status = path.stat()
            digest.update(f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path.absolute()}\0missing\n".encode())
    return digest.hexdigest()


def _examine_all(split: Split) -> ImageStats:
    """In threads: Pillow decodes without holding Python's lock."""
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(lambda i: _examine_one(split, i), range(len(split)), chunksize=64))
    columns: Any = list(zip(*rows, strict=True)) if rows else [()] * 7
    types: Any = (str, np.int32, np.int32, str, np.uint64, np.uint64, np.uint8)
    return ImageStats(*(np.array(column, type_) for column, type_ in zip(columns, types, strict=True)))


_NOTHING = np.zeros((THUMBNAIL, THUMBNAIL, 3), np.uint8)


def _examine_one(split: Split, index: int) -> tuple[Any, ...]:
    try:
        modes: list[str] = []
        image = open_image(split.images[index], modes)
    except DataError as error:
        name = split.name(index)
        text = str(error)
        return (text if text.startswith(name) else f"{name}: {text}"), 0, 0, "", 0, 0, _NOTHING
    digest = hashlib.blake2b(image.tobytes(), digest_size=8, person=b"%dx%d" % image.size)
    small = image.resize((16, 16), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BILINEAR))
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    thumbnail = np.asarray(small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    hashes = int.from_bytes(digest.digest(), "little"), int.from_bytes(bits.tobytes(), "little")
    return ("", *image.size, modes[0], *hashes, thumbnail)


def _read(file: Path, count: int) -> ImageStats | None:
    """None where there is none, or none that can be used."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            stats = ImageStats(**{field.name: arrays[field.name] for field in fields(ImageStats)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return stats if len(stats.problem) == count else None


def _write(file: Path, stats: ImageStats) -> None:
    """Whole or not at all."""
    beside = file.with_suffix(f".{os.getpid()}.npz")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(beside, **vars(stats))
        beside.replace(file)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
