"""Fonts for the names of classes in pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import ImageFont

_SIZE = 11  # pixels


@cache
def font_for(text: str) -> ImageFont.FreeTypeFont | None:
    """A font that has all characters of a text: matplotlib's, or one of the system's; None where there is none."""
    characters = frozenset(ord(character) for character in text if not character.isspace())
    path = next((path for path in _fonts() if characters <= _characters(path)), None)
    return None if path is None else _load(path)


@cache
def _load(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, _SIZE)


def _fonts() -> Iterator[str]:
    """The files of fonts; those of the system are looked for only if they are needed."""
    import matplotlib

    yield str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    yield from _system_fonts()


@cache
def _system_fonts() -> tuple[str, ...]:
    from matplotlib import font_manager

    return tuple(sorted(font_manager.findSystemFonts()))


@cache
def _characters(path: str) -> frozenset[int]:
    """Code points that a font has outlines for."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, fontNumber=0, lazy=True) as font:
            if "glyf" not in font and "CFF " not in font:  # of bitmaps, which Pillow draws at their own size alone
                return frozenset()
            return frozenset(font.getBestCmap() or {})
    except (TTLibError, OSError, KeyError):
        return frozenset()
