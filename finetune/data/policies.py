"""RandAugment and TrivialAugment: named operations on an image, each with a range of magnitudes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from finetune.recipe.augment import RandAugment, TrivialAugment

_BINS = 31
_LAST = _BINS - 1
_Operation = Callable[[Image.Image, float], Image.Image]


def apply_policy(image: Image.Image, policy: RandAugment | TrivialAugment, rng: np.random.Generator) -> Image.Image:
    """The image after the policy's operations; operations and magnitudes are torchvision's, to the bit."""
    wide = isinstance(policy, TrivialAugment)
    names = list(_RANGES)
    for _ in range(1 if isinstance(policy, TrivialAugment) else policy.num_ops):
        name = names[int(rng.integers(len(names)))]
        level = float(rng.integers(_BINS)) if isinstance(policy, TrivialAugment) else policy.magnitude
        negative = bool(rng.integers(2))
        image = operate(image, name, magnitude(name, level, image.size, wide=wide, negative=negative))
    return image


def magnitude(name: str, level: float, size: tuple[int, int], *, wide: bool, negative: bool) -> float:
    """What an operation on an image of this width and height is given at a level from 0 to 30."""
    width, height = size
    start, narrow_end, wide_end = _RANGES[name]
    edge = {"translate_x": width, "translate_y": height}.get(name, 1)
    value = _between(start, wide_end if wide else narrow_end * edge, level)
    if name == "posterize":
        value = round(value)
    return -value if negative and start == 0 else value


def operate(image: Image.Image, name: str, value: float) -> Image.Image:
    return _OPERATIONS[name](image, value)


def shift_hue(image: Image.Image, turn: float) -> Image.Image:
    """Hue moved around the colour circle by ``turn`` of it."""
    hue, saturation, value = image.convert("HSV").split()
    moved = (np.asarray(hue).astype(np.int16) + round(turn * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(moved.astype(np.uint8)), saturation, value)).convert("RGB")


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Output pixel (x, y) from input (a x + b y + c, d x + e y + f), nearest; black from outside."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhance(kind: Any) -> _Operation:
    return lambda image, value: kind(image).enhance(1 + value)


def _between(start: float, end: float, level: float) -> float:
    """``torch.linspace(start, end, 31)`` at a level: single precision, counted from the nearer end, rounded once.

    The last bit matters: pixels and translations are cut to whole numbers, and 15.999999 moves an image by 15.
    """
    first, last = float(np.float32(start)), float(np.float32(end))
    step = float(np.float32((last - first) / _LAST))
    value = first + step * level if level < _LAST / 2 else last - step * (_LAST - level)
    return float(np.float32(value))


# Magnitude at level 0, at level 30 for RandAugment, and at level 30 for TrivialAugment; one from 0 goes both ways.
# Shear: pixels per pixel; translate: shares of the edge (RandAugment), pixels (TrivialAugment); rotate: degrees;
# the next four: change of a factor of 1; posterize: bits kept; solarize: the least value that is inverted.
_RANGES: dict[str, tuple[float, float, float]] = {
    "identity": (0, 0, 0),
    "shear_x": (0, 0.3, 0.99),
    "shear_y": (0, 0.3, 0.99),
    "translate_x": (0, 150 / 331, 32),
    "translate_y": (0, 150 / 331, 32),
    "rotate": (0, 30, 135),
    "brightness": (0, 0.9, 0.99),
    "color": (0, 0.9, 0.99),
    "contrast": (0, 0.9, 0.99),
    "sharpness": (0, 0.9, 0.99),
    "posterize": (8, 4, 2),
    "solarize": (255, 0, 0),
    "autocontrast": (0, 0, 0),
    "equalize": (0, 0, 0),
}

_OPERATIONS: dict[str, _Operation] = {
    "identity": lambda image, value: image,
    "shear_x": lambda image, value: _affine(image, (1, value, 0, 0, 1, 0)),
    "shear_y": lambda image, value: _affine(image, (1, 0, 0, value, 1, 0)),
    "translate_x": lambda image, value: _affine(image, (1, 0, -int(value), 0, 1, 0)),
    "translate_y": lambda image, value: _affine(image, (1, 0, 0, 0, 1, -int(value))),
    "rotate": lambda image, value: image.rotate(value),
    "brightness": _enhance(ImageEnhance.Brightness),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "posterize": lambda image, value: ImageOps.posterize(image, int(value)),
    "solarize": lambda image, value: ImageOps.solarize(image, math.ceil(value)),
    "autocontrast": lambda image, value: ImageOps.autocontrast(image),
    "equalize": lambda image, value: ImageOps.equalize(image),
}
