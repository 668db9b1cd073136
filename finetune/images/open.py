"""Opening an image given as a path, bytes, array or PIL image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from finetune.errors import DataError

ImageLike = str | Path | bytes | np.ndarray | Image.Image
EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def open_image(image: ImageLike) -> Image.Image:
    """The image in RGB, fully decoded, rotated and mirrored as its EXIF orientation says.

    Args:
        image: a path, the bytes of an image file, a PIL image, or uint8 [H, W], [H, W, 1] or [H, W, 3].

    Raises:
        DataError: the image cannot be used; names the file and the reason.
    """
    return open_with_mode(image)[0]


def open_with_mode(image: ImageLike) -> tuple[Image.Image, str]:
    """As :func:`open_image`, and Pillow's mode of the image as it is stored."""
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    try:
        if isinstance(image, Image.Image):
            mode = image.mode
            return _upright_rgb(image), mode
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            if Image.MAX_IMAGE_PIXELS and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(
                    f"{opened.width} x {opened.height} pixels, more than {Image.MAX_IMAGE_PIXELS:,}"
                )
            mode = opened.mode  # before decoding, which may change it
            return _upright_rgb(opened), mode
    except Exception as error:  # Pillow's decoders raise many types, some of them only when pixels are read
        raise _data_error(error, image) from None


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip the high values to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {image.mode}) have no known range: save it with 8 or 16 bits per channel")
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)
    if array.dtype != np.uint8 or not is_image or array.size == 0:
        raise DataError(f"an image array must be uint8 [H, W] or [H, W, 3]; received {array.dtype} {list(array.shape)}")
    return Image.fromarray(array)


def _data_error(error: Exception, image: str | Path | bytes | Image.Image) -> DataError:
    where = _name(image)
    match error:
        case FileNotFoundError():
            return DataError(f"{where}: no such file")
        case IsADirectoryError():
            return DataError(f"{where}: a folder, not an image")
        case UnidentifiedImageError():
            size = len(image) if isinstance(image, bytes) else Path(str(image)).stat().st_size
            return DataError(f"{where}: {'not an image in a format that Pillow reads' if size else 'an empty file'}")
        case Image.DecompressionBombWarning() | Image.DecompressionBombError():
            return DataError(f"{where}: too large to open safely: {error}")
    return DataError(f"{where}: cannot be used as an image: {error}")


def _name(image: str | Path | bytes | Image.Image) -> str:
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or "PIL image")
    return "image bytes" if isinstance(image, bytes) else str(image)
