"""Decoding a crop of an image at reduced cost, for training only: pixels may differ slightly from evaluation's.

libjpeg-turbo decodes JPEG files at a half, a quarter or an eighth of their size, where the crop is at least that much
larger than the output: the inverse cosine transform gives the smaller image for a fraction of the work. OpenCV then
resizes the crop. Pillow decodes and resizes every other format.
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
_ORIENTATION = 0x0112  # EXIF tag


def decode_crop(image: ImageLike, choose_box: Callable[[int, int], Box], spec: ImageSpec) -> np.ndarray:
    """The box ``choose_box(width, height)`` of an image, resized to uint8 RGB [spec.height, spec.width, 3].

    Raises:
        DataError: as :func:`finetune.images.open.open_image`.
    """
    data = image.read_bytes() if isinstance(image, Path) and image.is_file() else image
    if isinstance(data, bytes) and (size := _size_of_plain_jpeg(data)):
        pixels = _decode_jpeg_crop(data, choose_box(*size), spec)
        if pixels is not None:
            return pixels
    opened = open_image(image)
    box = choose_box(*opened.size)
    return np.asarray(opened.resize((spec.width, spec.height), spec.resampling, box=box, reducing_gap=3.0))


def _size_of_plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a complete, upright RGB or grey JPEG file that is not too large; None for anything else."""
    if data[:2] != b"\xff\xd8" or data[-64:].rstrip(b"\0\r\n")[-2:] != b"\xff\xd9":
        return None
    try:
        with Image.open(io.BytesIO(data)) as header:
            upright = header.getexif().get(_ORIENTATION, 1) == 1  # also read from XMP
            plain = header.mode in ("RGB", "L") and header.width * header.height <= (Image.MAX_IMAGE_PIXELS or 1 << 62)
            return header.size if upright and plain else None
    except Exception:  # open_image reports what is wrong with it
        return None


def _decode_jpeg_crop(data: bytes, box: Box, spec: ImageSpec) -> np.ndarray | None:
    """None if OpenCV cannot decode the file."""
    import cv2

    cv2.setNumThreads(1)  # images are decoded in parallel already
    left, top, right, bottom = box
    reduction = 8
    while reduction > 1 and (right - left < reduction * spec.width or bottom - top < reduction * spec.height):
        reduction //= 2
    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }[reduction]
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        pixels = None
    if pixels is None:
        return None
    # The size of a reduced image is rounded up, so the crop is never empty.
    crop = pixels[top // reduction : -(-bottom // reduction), left // reduction : -(-right // reduction)]
    resized = cv2.resize(crop, (spec.width, spec.height), interpolation=_interpolation(crop, spec))
    return cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)


def _interpolation(crop: np.ndarray, spec: ImageSpec) -> int:
    """OpenCV's interpolation: bicubic to enlarge, bilinear to shrink by up to 2 (it skips no pixel then), else area."""
    import cv2

    ratios = crop.shape[0] / spec.height, crop.shape[1] / spec.width
    if max(ratios) > 2:
        return cv2.INTER_AREA
    return cv2.INTER_LINEAR if min(ratios) >= 1 else cv2.INTER_CUBIC
