"""A grid of captioned images, saved as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from finetune.files import written_atomically
from finetune.images.fonts import font_for

_CELL, _CAPTION = 128, 14  # heights in pixels; cells are square
_COLUMNS = 8


def save_image_grid(path: Path, images: Sequence[np.ndarray] | np.ndarray, captions: Sequence[str]) -> None:
    """Writes a PNG with each image above its caption.

    Args:
        images: N of uint8 [H, W, 3] or [H, W, 1]; scaled to the cell's size, with their aspect ratio kept.
        captions: one per image, cut to 20 characters.
    """
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * _CELL, rows * (_CELL + _CAPTION)), "white")
    draw = ImageDraw.Draw(grid)
    for i, (array, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = i % columns * _CELL, i // columns * (_CELL + _CAPTION)
        image = Image.fromarray(array if array.shape[-1] == 3 else array[..., 0])
        scale = (_CELL - 4) / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
        grid.paste(image.resize(size, resampling), (left + 2, top + 2))
        draw.text((left + 2, top + _CELL - 1), caption[:20], fill="black", font=font_for(caption[:20]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as beside:
        grid.save(beside, format=Image.registered_extensions()[path.suffix])
