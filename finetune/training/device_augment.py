"""What is done at random to a batch on the device: random erasing, mixup and CutMix."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from finetune.recipe import TrainStage


def augment_on_device(
    images: jax.Array, labels: jax.Array, num_classes: int, key: jax.Array, stage: TrainStage
) -> tuple[jax.Array, jax.Array]:
    """Normalized images and their targets after a stage's random erasing, then mixup or CutMix.

    Args:
        images: float32 [N, H, W, C], normalized.
        labels: int [N], or float32 [N, num_classes].

    Returns:
        The images, and the labels as they are, or float32 [N, num_classes] where images were mixed.
    """
    targets, erasing = labels, stage.augment.random_erasing
    if erasing is not None:
        images = erase(images, jax.random.fold_in(key, 1), erasing.probability, erasing.area)
    if stage.mixup or stage.cutmix:
        targets = jax.nn.one_hot(labels, num_classes) if labels.ndim == 1 else labels
        images, targets = mix(images, targets, jax.random.fold_in(key, 0), stage.mixup, stage.cutmix)
    return images, targets


def erase(images: jax.Array, key: jax.Array, probability: float, area: tuple[float, float]) -> jax.Array:
    """A box of some images set to zero, which is the mean of normalized pixels.

    Args:
        images: float32 [N, H, W, 3], normalized.
        probability: of each image.
        area: least and greatest share of the image; width over height is drawn between 3/10 and 10/3 on a logarithmic
            scale, and the box lies within the image.
    """
    count, height, width, _ = images.shape
    chosen, share, ratio, top, left = (jax.random.uniform(k, (count,)) for k in jax.random.split(key, 5))
    size = (area[0] + (area[1] - area[0]) * share) * height * width
    stretch = jnp.exp((2 * ratio - 1) * jnp.log(10 / 3))
    tall = jnp.clip(jnp.round(jnp.sqrt(size / stretch)), 1, height)
    wide = jnp.clip(jnp.round(jnp.sqrt(size * stretch)), 1, width)
    rows = _within(jnp.floor(top * (height - tall + 1)), tall, height)
    columns = _within(jnp.floor(left * (width - wide + 1)), wide, width)
    gone = rows[:, :, None] & columns[:, None, :] & (chosen < probability)[:, None, None]
    return jnp.where(gone[..., None], 0.0, images)


def _within(start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """bool [N, size]: which positions are in each interval."""
    positions = jnp.arange(size)
    return (positions >= start[:, None]) & (positions < (start + length)[:, None])


def mix(
    images: jax.Array, targets: jax.Array, key: jax.Array, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Each image with the one at its place in the reversed batch; one share, from Beta(alpha, alpha), for all.

    Args:
        images: float32 [N, H, W, 3], normalized.
        targets: float32 [N, C], distributions over the classes.
        mixup: alpha (Zhang et al. 2018, arXiv:1710.09412); 0 for none.
        cutmix: alpha (Yun et al. 2019, arXiv:1905.04899); 0 for none. With both, each batch takes one of them.
    """
    choice, share, place = jax.random.split(key, 3)
    both = mixup > 0 and cutmix > 0
    cut = jax.random.bernoulli(choice) if both else jnp.bool_(cutmix > 0)
    alpha = jnp.where(cut, cutmix, mixup)
    kept = jax.random.beta(share, alpha, alpha)
    mask = jnp.where(cut, _outside_a_box(place, images.shape[1:3], kept), kept)
    kept = jnp.where(cut, mask.mean(), kept)  # the box is cut off at the image's edges
    mask = mask[..., None].astype(images.dtype)
    return images * mask + images[::-1] * (1 - mask), targets * kept + targets[::-1] * (1 - kept)


def _outside_a_box(key: jax.Array, size: tuple[int, ...], kept: jax.Array) -> jax.Array:
    """float32 [H, W]: 0 in a box with the image's proportions, about 1 - kept of its area, at a random centre."""
    inside = []
    for pixels, place in zip(size, jax.random.uniform(key, (2,)), strict=True):
        half, centre = pixels * jnp.sqrt(1 - kept) / 2, jnp.floor(place * pixels)
        positions = jnp.arange(pixels)
        inside.append((positions >= jnp.floor(centre - half)) & (positions < jnp.floor(centre + half)))
    rows, columns = inside
    return 1.0 - (rows[:, None] & columns[None, :]).astype(jnp.float32)
