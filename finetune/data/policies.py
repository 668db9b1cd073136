"""RandAugment and TrivialAugment: named operations on an image, each with a range of magnitudes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from finetune.recipe.augment import RandAugment, TrivialAugment

_LEVELS = 31  # magnitudes 0 to 30
_Operation = Callable[[Image.Image, float], Image.Image]


def apply_policy(image: Image.Image, policy: RandAugment | TrivialAugment, rng: np.random.Generator) -> Image.Image:
    """The image after the policy's operations; operations and ranges are torchvision's."""
    wide = isinstance(policy, TrivialAugment)
    names = list(_RANGES)
    for _ in range(1 if isinstance(policy, TrivialAugment) else policy.num_ops):
        name = names[int(rng.integers(len(names)))]
        level = float(rng.integers(_LEVELS)) if isinstance(policy, TrivialAugment) else policy.magnitude
        signed = bool(rng.integers(2))
        image = operate(image, name, magnitude(name, level / (_LEVELS - 1), wide=wide, negative=signed))
    return image


def magnitude(name: str, share: float, *, wide: bool, negative: bool) -> float:
    """What an operation is given at a share in [0, 1] of its range."""
    narrow_end, wide_end, signed = _RANGES[name]
    value = share * (wide_end if wide else narrow_end)
    return -value if signed and negative else value


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


# Greatest magnitude in RandAugment and in TrivialAugment's wide space, and whether it goes both ways. Shear: pixels per
# pixel; translate: share of the width (RandAugment), pixels (TrivialAugment); rotate: degrees; posterize: bits taken
# away; solarize: how far the threshold comes down from 256.
_RANGES: dict[str, tuple[float, float, bool]] = {
    "identity": (0.0, 0.0, False),
    "shear_x": (0.3, 0.99, True),
    "shear_y": (0.3, 0.99, True),
    "translate_x": (150 / 331, 32.0, True),
    "translate_y": (150 / 331, 32.0, True),
    "rotate": (30.0, 135.0, True),
    "brightness": (0.9, 0.99, True),
    "color": (0.9, 0.99, True),
    "contrast": (0.9, 0.99, True),
    "sharpness": (0.9, 0.99, True),
    "posterize": (4.0, 6.0, False),
    "solarize": (256.0, 256.0, False),
    "autocontrast": (0.0, 0.0, False),
    "equalize": (0.0, 0.0, False),
}


def _pixels(value: float, edge: int) -> float:
    """A translation: below 1 it is a share of the edge."""
    return float(int(value * edge if abs(value) < 1 else value))


_OPERATIONS: dict[str, _Operation] = {
    "identity": lambda image, value: image,
    "shear_x": lambda image, value: _affine(image, (1, value, 0, 0, 1, 0)),
    "shear_y": lambda image, value: _affine(image, (1, 0, 0, value, 1, 0)),
    "translate_x": lambda image, value: _affine(image, (1, 0, -_pixels(value, image.width), 0, 1, 0)),
    "translate_y": lambda image, value: _affine(image, (1, 0, 0, 0, 1, -_pixels(value, image.height))),
    "rotate": lambda image, value: image.rotate(value),
    "brightness": _enhance(ImageEnhance.Brightness),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "posterize": lambda image, value: ImageOps.posterize(image, max(1, 8 - round(value))),
    "solarize": lambda image, value: ImageOps.solarize(image, round(256 - value)),
    "autocontrast": lambda image, value: ImageOps.autocontrast(image),
    "equalize": lambda image, value: ImageOps.equalize(image),
}
