"""A part of an image at a given size, fast: for training alone, where pixels may differ a little.

JPEG files are decoded by libjpeg-turbo, at a half, a quarter or an eighth of their size where what is cut out stays
large enough (the inverse cosine transform yields that for a fraction of the work), and resized by OpenCV. All else is
decoded and resized by Pillow.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.images.open import ImageLike, open_image
from finetune.images.spec import ImageSpec

Box = tuple[int, int, int, int]  # left, top, right, bottom
_ORIENTATION = 0x0112


def decode_crop(image: ImageLike, choose: Callable[[int, int], Box], spec: ImageSpec) -> np.ndarray:
    """The box ``choose(width, height)`` of an image, as uint8 [spec.height, spec.width, 3].

    Raises:
        DataError: as :func:`finetune.images.open.open_image`.
    """
    data = image.read_bytes() if isinstance(image, Path) and image.is_file() else image
    if isinstance(data, bytes) and (size := _plain_jpeg(data)):
        pixels = _decode_jpeg(data, choose(*size), spec)
        if pixels is not None:
            return pixels
    opened = open_image(image)
    cut = opened.resize((spec.width, spec.height), spec.resampling, box=choose(*opened.size), reducing_gap=3.0)
    return np.asarray(cut)


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a whole JPEG file in colour or grey that is upright and not too large; None for all else."""
    if data[:2] != b"\xff\xd8" or data[-64:].rstrip(b"\0\r\n")[-2:] != b"\xff\xd9":
        return None
    try:
        with Image.open(io.BytesIO(data)) as header:
            upright = header.getexif().get(_ORIENTATION, 1) == 1  # in EXIF, or in XMP
            plain = header.mode in ("RGB", "L") and header.width * header.height <= (Image.MAX_IMAGE_PIXELS or 1 << 62)
            return header.size if upright and plain else None
    except Exception:  # open_image says what is wrong with it
        return None


def _decode_jpeg(data: bytes, box: Box, spec: ImageSpec) -> np.ndarray | None:
    """None where OpenCV cannot."""
    import cv2

    cv2.setNumThreads(1)  # batches are decoded in parallel already
    left, top, right, bottom = box
    part = 8
    while part > 1 and (right - left < part * spec.width or bottom - top < part * spec.height):
        part //= 2
    reduced = {1: 0, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}[part]
    try:
        pixels = cv2.imdecode(
            np.frombuffer(data, np.uint8), (reduced or cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        pixels = None
    if pixels is None:
        return None
    # A scaled image has its size rounded up, so that none of these edges is empty.
    cut = pixels[top // part : -(-bottom // part), left // part : -(-right // part)]
    # What is left to shrink is less than half: bilinear skips no pixel then. Enlarging is bicubic.
    shrinks = min(cut.shape[0] / spec.height, cut.shape[1] / spec.width) >= 1
    method = cv2.INTER_LINEAR if shrinks else cv2.INTER_CUBIC
    if max(cut.shape[0] / spec.height, cut.shape[1] / spec.width) > 2:
        method = cv2.INTER_AREA
    return cv2.cvtColor(cv2.resize(cut, (spec.width, spec.height), interpolation=method), cv2.COLOR_BGR2RGB)
