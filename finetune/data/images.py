"""Opening images, whatever they come as."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from finetune.errors import DataError

ImageLike = str | Path | bytes | np.ndarray | Image.Image
EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def open_image(image: ImageLike) -> Image.Image:
    """An RGB image, upright as its EXIF orientation says.

    Args:
        image: a path, an encoded file's bytes, a PIL image, or uint8 [H, W], [H, W, 1] or [H, W, 3].

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        try:
            return _upright_rgb(image)
        except Exception as error:  # Pillow decodes on first use
            raise _data_error(str(getattr(image, "filename", "") or "the given image"), error) from None
    where = "the given bytes" if isinstance(image, bytes) else str(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
                return _upright_rgb(opened)
    except Exception as error:
        raise _data_error(where, error) from None


def check_headers(paths: Iterable[Path]) -> None:
    """Opens each file as far as its header.

    Raises:
        DataError: listing the files that are no images.
    """
    bad = []
    for path in paths:
        try:
            with Image.open(path):
                pass
        except Exception as error:
            bad.append(str(_data_error(str(path), error)))
    if bad:
        more = [f"... and {len(bad) - 10} more"] if len(bad) > 10 else []
        raise DataError("\n".join([*bad[:10], *more, "replace or remove these files, then start again"]))


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip the high values to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {image.mode}) have no known range: save it with 8 or 16 bits a channel")
    return image.convert("RGB")


def _data_error(where: str, error: Exception) -> DataError:
    """What is wrong with a file, in a user's words. Pillow's decoders raise many kinds of exception."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{where}: no such file")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{where}: a folder, not an image")
    if isinstance(error, UnidentifiedImageError):
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
    return Image.fromarray(array).convert("RGB")
