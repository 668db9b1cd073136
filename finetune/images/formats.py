"""Which files are images: by their names, and by their contents."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import Image

from finetune.files import open_regular

# What people fine-tune on, the most frequent first. Pillow decodes these itself; for others, such as EPS, it starts a
# program. HEIF needs a plugin.
_ALLOWED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")
_BY_NAME_ALONE = "TGA"  # has no signature: its reader would take many other files for an image
_TGA_EXTENSIONS = frozenset({".tga", ".icb", ".vda", ".vst"})
_PARTS_OF_ALLOWED = frozenset({"MPO", "DIB"})  # Pillow's names for JPEG files of several images, and for bare bitmaps
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_HEIC_EXTENSIONS = frozenset({".heic", ".heif"})
_REFUSED = {  # beginnings of files
    b"%!PS": "an EPS file, which is a program",
    b"\xc5\xd0\xd3\xc6": "an EPS file, which is a program",
    b"%PDF": "a WMF or PDF file",
    b"\xd7\xcd\xc6\x9a": "a WMF or PDF file",
    b"\x01\0\t\0": "a WMF or PDF file",
    b"\xd0\xcf\x11\xe0": "an FPX or MIC file",
    b"GRIB": "a GRIB file",
    b"BUFR": "a BUFR file",
    b"\x89HDF": "an HDF5 file",
    b"SIMPLE": "a FITS file",
    b"8BPS": "a PSD file",
    b"\0\0\1\0": "an ICO file",
    b"icns": "an ICNS file",
    b"DDS ": "a DDS file",
    b"qoif": "a QOI file",
    b"\0\0\1\xb3": "an MPEG file",
    b"<svg": "an SVG file",
    b"<?xml": "an XML file",
    b"PK\3\4": "a ZIP archive",
}


def readable_formats(name: str = "") -> tuple[str, ...]:
    """Pillow's names of the formats that a file is tried as. No other is ever opened.

    Args:
        name: of the file, if it has one.
    """
    return (*_with_a_signature(), _BY_NAME_ALONE) if _ending(name) in _TGA_EXTENSIONS else _with_a_signature()


@cache
def _with_a_signature() -> tuple[str, ...]:
    """Those of the allowed formats that Pillow can decode in this process."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in _ALLOWED if name in Image.OPEN)


def is_allowed(form: str | None) -> bool:
    """Whether a PIL image of this format, or one that no file is behind, may be used."""
    return form is None or form in _PARTS_OF_ALLOWED or form in (*_with_a_signature(), _BY_NAME_ALONE)


@cache
def image_extensions() -> frozenset[str]:
    """Endings of file names, with their dot and in lower case, that mean an image."""
    _with_a_signature()  # adds the endings of a plugin
    endings = Image.registered_extensions().items()
    return frozenset(end for end, name in endings if is_allowed(name)) | _HEIC_EXTENSIONS


def is_named_like_an_image(name: str) -> bool:
    return _ending(name) in image_extensions()


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def is_image_by_content(path: Path) -> bool:
    """Whether a file without an image's name begins like one."""
    try:
        with open_regular(path) as file, Image.open(file, formats=_with_a_signature()):
            return True
    except Exception:  # Pillow's readers raise many types on other files
        return is_heic(first_bytes(path))


def is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS


def first_bytes(path: str | Path) -> bytes:
    """The beginning of a file that :func:`why_unreadable` looks at; nothing of one that cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(64)
    except (OSError, ValueError):
        return b""


def why_unreadable(data: bytes) -> str:
    """What a file is that no reader takes, from its first bytes."""
    if not data:
        return "an empty file"
    if is_heic(data):
        return "a HEIC image, which needs: pip install 'flax-finetune[heic]'; or save it as JPEG"
    if data[40:44] == b" EMF":
        return "an EMF file: save it as PNG"
    refused = next((what for beginning, what in _REFUSED.items() if data.startswith(beginning)), None)
    if refused is not None:
        return f"{refused}: save it as PNG"
    formats = ", ".join((*_with_a_signature(), _BY_NAME_ALONE))
    return f"not an image in a format that Pillow reads safely ({formats})"
