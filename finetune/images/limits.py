"""Limits that are checked before anything is decoded: a small file can take all memory, or hours."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from finetune.files import open_regular

PNG = b"\x89PNG\r\n\x1a\n"
_MAX_BYTES = 1 << 28  # of a file that is read as a whole
_READ_IN_PARTS = (b"II", b"MM", b"BM", b"P5", b"P6")  # beginnings of those that are not: TIFF, BMP and PPM
_SCANS = 16  # of a JPEG file of any size; each is a pass over its pixels
_SCANNED_PIXELS = 1 << 30  # in all passes, where there are more
_WEBP_PIXELS = 50_000_000  # its decoder takes 16 bytes for each
_RLE4, _RLE4_PIXELS = 2, 1 << 24  # a compression of bitmaps that Pillow decodes pixel by pixel in Python
_CHUNKS = 100_000  # of a PNG file; each costs Pillow some calls in Python


def open_image_file(image: str | Path | bytes) -> BinaryIO:
    """
    Raises:
        OSError: it is no regular file, or cannot be read.
        Image.DecompressionBombError: it is too large.
    """
    if isinstance(image, bytes):
        return io.BytesIO(image)
    file = open_regular(image)
    size = os.fstat(file.fileno()).st_size
    if size > _MAX_BYTES:
        beginning = file.read(2)
        file.seek(0)
        if beginning not in _READ_IN_PARTS:
            file.close()
            raise Image.DecompressionBombError(f"{size / 1e6:,.0f} MB; at most {_MAX_BYTES / 1e6:,.0f} MB are read")
    return file


def refuse_bombs(image: Image.Image, file: BinaryIO) -> None:
    """
    Raises:
        Image.DecompressionBombError: an opened image has more pixels, or scans of them, than are decoded.
    """
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS or sys.maxsize
    if image.format == "WEBP":
        most = min(most, _WEBP_PIXELS)
    elif image.format in ("BMP", "DIB") and image.info.get("compression") == _RLE4:
        most = min(most, _RLE4_PIXELS)
    if pixels > most:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {most:,}")
    if image.format in ("JPEG", "MPO"):
        at = file.tell()
        file.seek(0)
        scans = file.read().count(b"\xff\xda")
        file.seek(at)
        if scans > _SCANS and scans * pixels > _SCANNED_PIXELS:
            raise Image.DecompressionBombError(f"{scans:,} scans of {image.width} x {image.height} pixels")


def refuse_many_chunks(file: BinaryIO) -> None:
    """
    Raises:
        Image.DecompressionBombError: it is a PNG file of very many chunks.
    """
    if file.read(len(PNG)) == PNG:
        for _ in range(_CHUNKS):
            head = file.read(8)
            if len(head) < 8:
                break
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        else:
            raise Image.DecompressionBombError(f"more than {_CHUNKS:,} chunks")
    file.seek(0)
