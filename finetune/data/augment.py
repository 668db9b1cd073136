"""Augmentation of training images: random crops, flips, color jitter and policies. Imports no JAX, for workers."""

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

_ATTEMPTS = 10  # to draw a box that fits


def make_training_transform(augment: Augment, spec: ImageSpec) -> TrainingTransform:
    """A function (image, generator) -> uint8 [spec.height, spec.width, channels], to be used by a loader.

    Random erasing and mixing are not part of it: they run on the device.
    """
    return TrainingTransform(augment, spec)


@dataclass(frozen=True)
class TrainingTransform:
    """See :func:`make_training_transform`."""

    augment: Augment
    spec: ImageSpec

    def __call__(self, image: ImageLike, rng: np.random.Generator) -> np.ndarray:
        augment = self.augment
        pixels = self._crop(image, rng)
        if augment.hflip and rng.random() < augment.hflip:
            pixels = pixels[:, ::-1]
        if augment.vflip and rng.random() < augment.vflip:
            pixels = pixels[::-1]
        pixels = np.ascontiguousarray(pixels)
        if augment.color_jitter is None and augment.auto_augment is None:
            return self.spec.to_channels(pixels)
        changed = Image.fromarray(pixels)
        if augment.color_jitter is not None:
            changed = jitter(changed, augment.color_jitter, rng)
        if augment.auto_augment is not None:
            changed = apply_policy(changed, augment.auto_augment, rng)
        return self.spec.to_channels(np.asarray(changed))

    def _crop(self, image: ImageLike, rng: np.random.Generator) -> np.ndarray:
        crop = self.augment.random_resized_crop
        if crop is not None:
            return decode_crop(image, lambda width, height: random_box(width, height, crop, rng), self.spec)
        return image if self._has_final_size(image) else self.spec.resize_and_crop(open_image(image))

    def _has_final_size(self, image: ImageLike) -> TypeGuard[np.ndarray]:
        """True of some images from the image cache."""
        spec = self.spec
        same = isinstance(image, np.ndarray) and image.shape == (spec.height, spec.width, 3)
        return same and spec.leaves_size(spec.width, spec.height)


def random_box(width: int, height: int, crop: RandomResizedCrop, rng: np.random.Generator) -> Box:
    """A box of random area and aspect ratio within an image; if none fits, the largest central one of an allowed ratio.

    The Inception crop (Szegedy et al. 2015), with the distributions of torchvision's ``RandomResizedCrop``.
    """
    low, high = (math.log(value) for value in crop.ratio)
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*crop.scale)
        ratio = math.exp(rng.uniform(low, high))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = int(rng.integers(width - box_width + 1)), int(rng.integers(height - box_height + 1))
            return left, top, left + box_width, top + box_height
    box_width = min(width, max(1, round(height * crop.ratio[1])))
    box_height = min(height, max(1, round(width / crop.ratio[0])))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def jitter(image: Image.Image, strength: ColorJitter, rng: np.random.Generator) -> Image.Image:
    """Scales brightness, contrast and saturation by up to 1 +- strength, shifts the hue by up to +- strength.

    In random order, as torchvision's ``ColorJitter``.
    """

    def scale(
        enhancer: Callable[[Image.Image], ImageEnhance._Enhance], most: float
    ) -> Callable[[Image.Image], Image.Image]:
        factor = rng.uniform(max(0.0, 1 - most), 1 + most)
        return lambda image: enhancer(image).enhance(factor)

    scales = (
        (ImageEnhance.Brightness, strength.brightness),
        (ImageEnhance.Contrast, strength.contrast),
        (ImageEnhance.Color, strength.saturation),
    )
    changes = [scale(enhancer, most) for enhancer, most in scales if most]
    if strength.hue:
        shift = rng.uniform(-strength.hue, strength.hue)
        changes.append(lambda image: shift_hue(image, shift))
    for i in rng.permutation(len(changes)):
        image = changes[i](image)
    return image
