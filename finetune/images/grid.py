"""A sheet of training images as the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_CELL, _TEXT, _COLUMNS = 128, 14, 8  # pixels, pixels, images


def save_image_grid(path: Path, images: np.ndarray, captions: Sequence[str]) -> None:
    """Writes a PNG with each image above its caption.

    Args:
        images: uint8 [N, H, W, 3] or [N, H, W, 1]; shown with square pixels, at one size.
    """
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * _CELL, rows * (_CELL + _TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (array, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = i % columns * _CELL, i // columns * (_CELL + _TEXT)
        image = Image.fromarray(array if array.shape[-1] == 3 else array[..., 0])
        scale = (_CELL - 4) / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        filter = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
        sheet.paste(image.resize(size, filter), (left + 2, top + 2))
        draw.text((left + 2, top + _CELL - 1), caption[:20], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
