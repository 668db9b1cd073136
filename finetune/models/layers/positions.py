"""Interpolates learned positions to another image size, exactly as the library that made the checkpoint does.

transformers resizes with PyTorch's plain bicubic filter, timm and open_clip with the antialiased one; TIPSv2 in
transformers with the antialiased bilinear filter.
"""

from __future__ import annotations

import numpy as np


def resize_positions(
    table: np.ndarray, prefix: int, grid: int, *, antialias: bool, bilinear: bool = False
) -> np.ndarray:
    """Position embeddings for ``grid`` x ``grid`` patches.

    Args:
        table: float [prefix + old_grid**2, C], square.
        prefix: number of leading rows that belong to no patch; they are not changed.
        grid: patches along one edge.
        antialias: as in PyTorch's ``interpolate(mode="bicubic", align_corners=False, antialias=...)``.
        bilinear: with ``mode="bilinear"`` instead; needs ``antialias``.

    Returns:
        float32 [prefix + grid**2, C].
    """
    old = round(float(np.sqrt(len(table) - prefix)))
    weights = _bilinear(old, grid) if bilinear else _bicubic(old, grid, antialias)
    patches = table[prefix:].reshape(old, old, -1).astype(np.float64)
    resized = np.einsum("yi,xj,ijc->yxc", weights, weights, patches, optimize=True)
    return np.concatenate([table[:prefix], resized.reshape(grid**2, -1)]).astype(np.float32)


def _bilinear(old: int, new: int) -> np.ndarray:
    """Interpolation weights [new, old] of the antialiased triangle filter; each row sums to one."""
    scale = old / new
    centers = (np.arange(new) + 0.5) * scale - 0.5
    weights = np.maximum(1 - np.abs(np.arange(old) - centers[:, None]) / max(scale, 1.0), 0)
    return weights / weights.sum(axis=1, keepdims=True)


def _bicubic(old: int, new: int, antialias: bool) -> np.ndarray:
    """Interpolation weights [new, old]; each row sums to one.

    Keys' cubic kernel (1981) with PyTorch's constants. Plain: -0.75, and samples beyond the edge repeat the edge.
    Antialiased: -0.5, and the filter widens in proportion when shrinking and is cut off at the edge.
    """
    scale = old / new
    centers = (np.arange(new) + 0.5) * scale - 0.5
    if antialias:
        width = max(scale, 1.0)
        weights = _cubic((np.arange(old) - centers[:, None]) / width, -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    weights = np.zeros((new, old))
    taps = np.floor(centers).astype(int)[:, None] + np.arange(-1, 3)
    np.add.at(weights, (np.arange(new)[:, None], taps.clip(0, old - 1)), _cubic(taps - centers[:, None], -0.75))
    return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outer = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))
