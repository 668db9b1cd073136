"""Opening images, whatever they come as."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from finetune.errors import DataError

ImageLike = str | Path | bytes | np.ndarray | Image.Image
EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def open_image(image: ImageLike, stored: list[str] | None = None) -> Image.Image:
    """An RGB image, upright as its EXIF orientation says.

    Args:
        image: a path, an encoded file's bytes, a PIL image, or uint8 [H, W], [H, W, 1] or [H, W, 3].
        stored: takes the mode that Pillow gives the image as it is stored.

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    where = _where(image)
    try:
        if isinstance(image, Image.Image):
            return _upright_rgb(image, stored)
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            if Image.MAX_IMAGE_PIXELS and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(
                    f"{opened.width} x {opened.height} pixels, more than {Image.MAX_IMAGE_PIXELS:,}"
                )
            return _upright_rgb(opened, stored)
    except Exception as error:  # Pillow decodes on first use
        raise _data_error(where, error, image) from None


def _where(image: ImageLike) -> str:
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or "the given image")
    return "the given bytes" if isinstance(image, bytes) else str(image)


def _upright_rgb(image: Image.Image, stored: list[str] | None) -> Image.Image:
    if stored is not None:
        stored.append(image.mode)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip the high values to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {image.mode}) have no known range: save it with 8 or 16 bits a channel")
    return image.convert("RGB")


def _data_error(where: str, error: Exception, image: ImageLike) -> DataError:
    """What is wrong with a file, in a user's words. Pillow's decoders raise many kinds of exception."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{where}: no such file")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{where}: a folder, not an image")
    if isinstance(error, UnidentifiedImageError):
        if not (len(image) if isinstance(image, bytes) else Path(str(image)).stat().st_size):
            return DataError(f"{where}: an empty file")
        return DataError(f"{where}: not an image in a format that Pillow reads")
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return DataError(f"{where}: too large to open safely: {error}")
    return DataError(f"{where}: cannot be used as an image: {error}")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)
    if array.dtype != np.uint8 or not is_image or array.size == 0:
        raise DataError(f"an image array must be uint8 [H, W] or [H, W, 3]; received {array.dtype} {list(array.shape)}")
    return Image.fromarray(array)
