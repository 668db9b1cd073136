"""Opening an image given as a path, bytes, array or PIL image."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from finetune.errors import DataError
from finetune.images.formats import readable_formats, why_unreadable

ImageLike = str | Path | bytes | np.ndarray | Image.Image
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # where Pillow finds an orientation
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


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
    if isinstance(image, bytearray | memoryview):
        image = bytes(image)
    elif hasattr(image, "__array__") and not isinstance(image, np.ndarray | Image.Image):
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if not isinstance(image, str | Path | bytes | Image.Image):
        raise DataError(
            f"an image is a path, the bytes of a file, a PIL image or a uint8 array; received {type(image).__name__}"
        )
    if isinstance(image, str) and re.match(r"https?://", image):
        raise DataError(f"{image}: a URL, and images are read from files: download it, and give its path")
    try:
        if isinstance(image, Image.Image):
            mode = image.mode
            return _upright_rgb(image), mode
        try:
            return _decode(image)
        except ValueError:  # also for a text or a colour profile in a PNG that Pillow finds too large
            data = image if isinstance(image, bytes) else Path(image).read_bytes()
            if not data.startswith(_PNG):
                raise
            return _decode(_without_notes(data))
    except Exception as error:  # Pillow's decoders raise many types, some of them only when pixels are read
        raise _data_error(error, image) from None


def _decode(image: str | Path | bytes) -> tuple[Image.Image, str]:
    file = io.BytesIO(image) if isinstance(image, bytes) else image
    with Image.open(file, formats=readable_formats()) as opened:
        if Image.MAX_IMAGE_PIXELS and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(
                f"{opened.width} x {opened.height} pixels, more than {Image.MAX_IMAGE_PIXELS:,}"
            )
        mode = opened.mode  # before decoding, which may change it
        return _upright_rgb(opened), mode


def _without_notes(png: bytes) -> bytes:
    """A PNG without its texts and its colour profile, which no pixel depends on here."""
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] not in _PNG_NOTES:
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
        for name in _METADATA:  # it would turn the image once more where it is opened again
            image.info.pop(name, None)
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip the high values to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {image.mode}) have no known range: save it with 8 or 16 bits per channel")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """As EXIF or XMP says; 1, upright, where they say nothing that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's parsers of metadata raise many types; no pixel depends on them
        return 1


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
            return DataError(f"{where}: {why_unreadable(_first_bytes(image))}")
        case Image.DecompressionBombWarning() | Image.DecompressionBombError():
            return DataError(f"{where}: too large to open safely: {error}")
    return DataError(f"{where}: cannot be used as an image: {error}")


def _first_bytes(image: str | Path | bytes | Image.Image) -> bytes:
    if isinstance(image, bytes):
        return image[:16]
    try:
        with Path(str(image)).open("rb") as file:
            return file.read(16)
    except OSError:
        return b""


def _name(image: str | Path | bytes | Image.Image) -> str:
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or "PIL image")
    return "image bytes" if isinstance(image, bytes) else str(image)
