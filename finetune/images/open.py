"""Opening an image given as a path, bytes, array or PIL image."""

from __future__ import annotations

import errno
import io
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from finetune.errors import DataError, first_line
from finetune.images.formats import first_bytes, is_allowed, readable_formats, why_unreadable
from finetune.images.limits import PNG, open_image_file, refuse_bombs, refuse_many_chunks

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
            return _from_pil(image)
        name = "" if isinstance(image, bytes) else str(image)
        with open_image_file(image) as file:
            return _decode(file, name) or _decode(io.BytesIO(_without_notes(file)), name, last=True)  # type: ignore[return-value]
    except Exception as error:  # Pillow's decoders raise many types, some of them only when pixels are read
        raise _data_error(error, image) from None


def _from_pil(image: Image.Image) -> tuple[Image.Image, str]:
    if not is_allowed(image.format):
        raise ValueError(f"a format that is not read ({image.format}); give its pixels: image.convert('RGB')")
    mode = image.mode
    image.load()
    return _turned(_as_rgb(image), _orientation(image)), mode


def _decode(file: BinaryIO, name: str, *, last: bool = False) -> tuple[Image.Image, str] | None:
    """None for a PNG with a text or a colour profile that Pillow finds too large, unless this is the last try."""
    try:
        refuse_many_chunks(file)
        with Image.open(file, formats=readable_formats(name)) as opened:
            refuse_bombs(opened, file)
            mode = opened.mode  # before decoding, which may change it
            opened.load()
            orientation, rgb = _orientation(opened), _as_rgb(opened)
        del opened  # frees its pixels before the others are turned
        return _turned(rgb, orientation), mode
    except ValueError:
        file.seek(0)
        if last or file.read(len(PNG)) != PNG:
            raise
        return None


def _without_notes(file: BinaryIO) -> bytes:
    """A PNG without its texts and its colour profile, which no pixel depends on here."""
    file.seek(0)
    png = file.read()
    kept, at = [PNG], len(PNG)
    while at + 8 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] not in _PNG_NOTES:
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _as_rgb(image: Image.Image) -> Image.Image:
    """A copy in RGB, with 8 bits per channel."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip the high values to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {image.mode}) have no known range: save it with 8 or 16 bits per channel")
    return image.convert("RGB")


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """Rotated and mirrored as an EXIF orientation says."""
    turn = _UPRIGHT.get(orientation)
    if turn is None:
        return image
    image = image.transpose(turn)
    for name in _METADATA:  # it would turn the image once more where it is opened again
        image.info.pop(name, None)
    return image


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
            path = Path(where)
            return DataError(
                f"{where}: {f'a link to nothing: {path.readlink()}' if path.is_symlink() else 'no such file'}"
            )
        case IsADirectoryError():
            return DataError(f"{where}: a folder, not an image")
        case OSError(errno=errno.ELOOP):
            return DataError(f"{where}: a link that leads to itself")
        case UnidentifiedImageError():
            data = image[:64] if isinstance(image, bytes) else first_bytes(str(image))
            return DataError(f"{where}: {why_unreadable(data)}")
        case Image.DecompressionBombWarning() | Image.DecompressionBombError():
            return DataError(f"{where}: too large to open safely: {error}")
        case OSError(strerror=str(reason)):
            return DataError(f"{where}: cannot be used as an image: {reason}")
    return DataError(f"{where}: cannot be used as an image: {first_line(error)}")


def _name(image: str | Path | bytes | Image.Image) -> str:
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or "PIL image")
    return "image bytes" if isinstance(image, bytes) else str(image)
