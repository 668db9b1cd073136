"""HTML from the templates of this room: one file, which loads nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from finetune.errors import DataError
from finetune.images.open import open_image

_EDGE = 112  # of pictures, in pixels: enough to see what is on them
_LARGE_EDGE = 1024  # of those that are files
_INSIDE = 1 << 18  # bytes of a file that a page holds as they are


def render(template: str, **facts: Any) -> str:
    """A page. Whatever the facts hold is escaped, but for charts and pictures made here."""
    return _environment().get_template(template).render(**facts)


def picture(image: Image.Image | np.ndarray, alt: str, edge: int = _EDGE) -> Markup:
    """An ``<img>`` with its pixels inside, no larger than ``edge``; very small ones are enlarged, pixel by pixel.

    Args:
        image: or uint8 [H, W, 3] or [H, W, 1].
        alt: what it shows, for those who do not see it.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    image = image.convert("RGB")
    scale = edge / max(image.size)
    if (factor := _EDGE // max(image.size)) > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    elif scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    edges = Markup('width="{}" height="{}"').format(image.width, image.height)
    return Markup('<img src="data:image/webp;base64,{}" {} alt="{}">').format(data, edges, alt)


def picture_of_file(file: Path, alt: str) -> Markup | None:
    """An ``<img>`` with a PNG file inside, made smaller where it is large; None where it cannot be read."""
    try:
        if file.is_symlink():  # to whatever is there
            return None
        if file.stat().st_size > _INSIDE:
            return picture(open_image(file), alt, _LARGE_EDGE)
        data = base64.b64encode(file.read_bytes()).decode()
    except (OSError, DataError):
        return None
    return Markup('<img src="data:image/png;base64,{}" alt="{}" style="max-width: 100%">').format(data, alt)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("finetune.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name, form in {"percent": "{:.1%}", "number": "{:.4f}", "count": "{:,}"}.items():
        environment.filters[name] = partial(_formatted, form)
    environment.filters |= {"interval": _interval, "p_value": _p_value, "pairs": _pairs}
    return environment


def _formatted(form: str, value: float | None) -> str:
    return "-" if value is None else form.format(value)


def _interval(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else " \u2013 ".join(f"{end:.1%}" for end in ends)


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def _pairs(items: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in items.items())
