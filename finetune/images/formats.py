"""Which files are images: by their names, and by their contents."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import Image

# Formats for which Pillow starts another program, and those that it recognizes but cannot decode.
_REFUSED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"})
_FIRST = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # tried first, for speed
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_HEIC_EXTENSIONS = frozenset({".heic", ".heif"})


@cache
def readable_formats() -> tuple[str, ...]:
    """Names of the formats that are read: all that Pillow decodes in this process, and HEIC where its plugin is
    installed."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = set(Image.OPEN) - _REFUSED
    return (*(name for name in _FIRST if name in known), *sorted(known - set(_FIRST)))


@cache
def image_extensions() -> frozenset[str]:
    """Endings of file names, with their dot and in lower case, that mean an image."""
    formats = readable_formats()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in formats) | _HEIC_EXTENSIONS


def is_named_like_an_image(name: str) -> bool:
    return Path(name).suffix.lower() in image_extensions()


def is_image_by_content(path: Path) -> bool:
    """Whether a file without an image's name begins like one."""
    try:
        with Image.open(path, formats=_formats_with_a_signature()):
            return True
    except Exception:  # Pillow's readers raise many types on other files
        return is_heic(_beginning(path))


@cache
def _formats_with_a_signature() -> tuple[str, ...]:
    """Without the formats that would take many other files for an image."""
    return tuple(name for name in readable_formats() if Image.OPEN[name][1] is not None)


def is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS


def why_unreadable(data: bytes) -> str:
    """What a file is that no reader takes, from its first bytes."""
    if not data:
        return "an empty file"
    if is_heic(data):
        return "a HEIC image, which needs: pip install 'flax-finetune[heic]'; or save it as JPEG"
    if data.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        return "an EPS file, which is a program: save it as PNG"
    if data.startswith((b"\xd7\xcd\xc6\x9a", b"%PDF")):
        return "a WMF or PDF file: save it as PNG"
    return "not an image in a format that Pillow reads"


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError:
        return b""
