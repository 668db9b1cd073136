"""Random erasing on the device (Zhong et al. 2020, arXiv:1708.04896)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
