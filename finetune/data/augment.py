"""Training images: cut out, mirrored and changed at random. Free of JAX, for worker processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from PIL import Image, ImageEnhance

from finetune.data.policies import apply_policy, shift_hue
from finetune.images.fast_decode import Box, decode_crop
from finetune.images.open import ImageLike, open_image
from finetune.images.spec import ImageSpec
from finetune.recipe.augment import Augment, ColorJitter, RandomResizedCrop

_ATTEMPTS = 10


def make_training_transform(augment: Augment, spec: ImageSpec) -> TrainingTransform:
    """``transform(image, generator)``: uint8 [H, W, channels] as the spec wants it; erasing follows on the device."""
    return TrainingTransform(augment, spec)


@dataclass(frozen=True)
class TrainingTransform:
    """See :func:`make_training_transform`."""

    augment: Augment
    spec: ImageSpec

    def __call__(self, image: ImageLike, rng: np.random.Generator) -> np.ndarray:
        a = self.augment
        if a.random_resized_crop is None:
            pixels = image if self._ready(image) else self.spec.fit(open_image(image))
        else:
            crop = a.random_resized_crop
            pixels = decode_crop(image, lambda width, height: random_box(width, height, crop, rng), self.spec)
        if a.hflip and rng.random() < a.hflip:
            pixels = pixels[:, ::-1]
        if a.vflip and rng.random() < a.vflip:
            pixels = pixels[::-1]
        if a.color_jitter is None and a.auto_augment is None:
            return self.spec.in_channels(np.ascontiguousarray(pixels))
        changed = Image.fromarray(np.ascontiguousarray(pixels))
        if a.color_jitter is not None:
            changed = jitter(changed, a.color_jitter, rng)
        if a.auto_augment is not None:
            changed = apply_policy(changed, a.auto_augment, rng)
        return self.spec.in_channels(np.asarray(changed))

    def _ready(self, image: ImageLike) -> TypeGuard[np.ndarray]:
        """Whether it has the model's size already, as images from the cache may."""
        spec = self.spec
        same = isinstance(image, np.ndarray) and image.shape == (spec.height, spec.width, 3)
        return same and spec.keeps(spec.width, spec.height)


def random_box(width: int, height: int, crop: RandomResizedCrop, rng: np.random.Generator) -> Box:
    """A box of random area and shape within an image; where none fits, the largest central one of an allowed shape."""
    low, high = (math.log(value) for value in crop.ratio)
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*crop.scale)
        ratio = math.exp(rng.uniform(low, high))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - tall + 1))
            return left, top, left + wide, top + tall
    wide = min(width, max(1, round(height * crop.ratio[1])))
    tall = min(height, max(1, round(width / crop.ratio[0])))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def jitter(image: Image.Image, strength: ColorJitter, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation times 1 +- strength, hue shifted by up to +- strength; in random order."""

    def enhance(
        kind: Callable[[Image.Image], ImageEnhance._Enhance], most: float
    ) -> Callable[[Image.Image], Image.Image]:
        factor = rng.uniform(max(0.0, 1 - most), 1 + most)
        return lambda image: kind(image).enhance(factor)

    kinds = (
        (ImageEnhance.Brightness, strength.brightness),
        (ImageEnhance.Contrast, strength.contrast),
        (ImageEnhance.Color, strength.saturation),
    )
    changes = [enhance(kind, most) for kind, most in kinds if most]
    if strength.hue:
        turn = rng.uniform(-strength.hue, strength.hue)
        changes.append(lambda image: shift_hue(image, turn))
    for i in rng.permutation(len(changes)):
        image = changes[i](image)
    return image
