"""Attention with relative position bias, inside windows of a feature map and over all patches.

Swin (Liu et al. 2021, arXiv:2103.14030) attends inside windows; BEiT (Bao et al. 2022, arXiv:2106.08254) has the same
bias over a whole image, where the grid of patches is the only window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from finetune.errors import ModelError
from finetune.models.layers.attention import attention_logits, note_attention

Size = tuple[int, int]  # height and width
# How a table of relative positions is resampled for another window. "linear": PyTorch's bilinear filter (transformers).
# "geometric": linear between entries whose distances grow geometrically, so that near ones change least (timm).
Resampling = Literal["linear", "geometric"]
_MOST_PAIRS = 1 << 24  # of tokens: 64 x 64 patches


def biased_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    scale: jax.Array | float,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Attention with weights ``softmax(scale * query key^T + bias)``, which are computed in float32.

    Args:
        query, key, value: [..., tokens, heads, d].
        bias: float32, broadcastable to [..., heads, tokens, tokens].
        scale: a number, or float32 [heads, 1, 1].
        dropout: applied to the attention weights.

    Returns:
        [..., tokens, heads, d], in the dtype of ``value``.
    """
    logits = attention_logits(query, key) * scale
    weights = jax.nn.softmax(logits if bias is None else logits + bias, axis=-1)
    note_attention(weights)
    weights = weights.astype(value.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights if dropout is None else dropout(weights), value)


def partition(x: jax.Array, window: Size) -> jax.Array:
    """The windows of a feature map: [N, H, W, C] to [N, windows, tokens, C]; H and W are multiples of the window."""
    (batch, height, width, channels), (rows, columns) = x.shape, window
    x = x.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, rows * columns, channels)


def merge(windows: jax.Array, window: Size, size: Size) -> jax.Array:
    """The inverse of ``partition``: [N, windows, tokens, C] to [N, H, W, C] of that size."""
    (height, width), (rows, columns) = size, window
    x = windows.reshape(windows.shape[0], height // rows, width // columns, rows, columns, windows.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(windows.shape[0], height, width, -1)


def shift_bias(size: Size, window: Size, shift: Size, value: float) -> np.ndarray:
    """What keeps tokens apart that a cyclic shift has brought into one window from opposite edges of the map.

    Args:
        size: of the feature map, multiples of the window.
        value: added to the logits between such tokens.

    Returns:
        float32 [windows, 1, tokens, tokens].
    """

    def region(length: int, edge: int, offset: int) -> np.ndarray:
        index = np.arange(length)
        return (index >= length - edge).astype(int) + (index >= length - offset) if offset else np.zeros(length, int)

    rows, columns = (region(*axis) for axis in zip(size, window, shift, strict=True))
    regions = np.asarray(rows[:, None] * 3 + columns)
    tiles = regions.reshape(size[0] // window[0], window[0], size[1] // window[1], window[1])
    tokens = tiles.transpose(0, 2, 1, 3).reshape(-1, window[0] * window[1])
    return np.where(tokens[:, None, :, None] == tokens[:, None, None, :], 0, value).astype(np.float32)


def relative_index(window: Size) -> np.ndarray:
    """int [tokens, tokens]: the row of a table [(2 * height - 1) * (2 * width - 1), heads] for each pair of tokens.

    Raises:
        ModelError: they are so many pairs that the table of them would fill the memory.
    """
    if (tokens := window[0] * window[1]) ** 2 > _MOST_PAIRS:
        raise ModelError(
            f"attention with position bias over {window[0]} x {window[1]} = {tokens:,} patches; use smaller images"
        )
    rows, columns = (axis.reshape(-1) for axis in np.indices(window))
    down = rows[:, None] - rows + window[0] - 1
    right = columns[:, None] - columns + window[1] - 1
    return np.asarray(down * (2 * window[1] - 1) + right)


def resample_table(table: jax.Array, old: Size, new: Size, resampling: Resampling) -> jax.Array:
    """A table of relative positions for another window.

    Args:
        table: float32 [(2 * old height - 1) * (2 * old width - 1), heads].

    Returns:
        float32 [(2 * new height - 1) * (2 * new width - 1), heads].
    """
    if old == new:
        return table
    weights = _geometric if resampling == "geometric" else _linear
    lengths = [(2 * before - 1, 2 * after - 1) for before, after in zip(old, new, strict=True)]
    down, right = (weights(*pair).astype(np.float32) for pair in lengths)
    grid = table.reshape(lengths[0][0], lengths[1][0], -1)
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("yi,xj,ijh->yxh", down, right, grid, precision=highest).reshape(-1, table.shape[-1])


def _linear(old: int, new: int) -> np.ndarray:
    """Interpolation weights [new, old], as PyTorch's ``interpolate(mode="bilinear", align_corners=False)``."""
    centers = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
    return _between(np.arange(old, dtype=np.float64), centers)


def _geometric(old: int, new: int) -> np.ndarray:
    """Interpolation weights [new, old], where the old entries lie at the distances ``1 + q + ... + q^i`` from the
    middle one, and q is such that the outermost of them is the new table's.
    """
    count, reach = old // 2, new // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio**count) / (1 - ratio) > reach else (ratio, high)
    distances = np.cumsum(ratio ** np.arange(count))
    positions = np.concatenate([-distances[::-1], [0.0], distances])
    return _between(positions, np.arange(-reach, reach + 1, dtype=np.float64))


def _between(positions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights [targets, positions] of linear interpolation; beyond the ends, those of the last position."""
    return np.stack([np.interp(targets, positions, column) for column in np.eye(len(positions))], axis=1)
