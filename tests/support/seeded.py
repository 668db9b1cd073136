"""Weights that are made anew where they are needed, for reference models that are too large to keep."""

from __future__ import annotations

import zlib

import numpy as np


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor's values, float32, which depend on nothing but its name and shape."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) < 2:
        low, high = (-0.3, 0.3) if name.endswith(("bias", "running_mean")) else (0.5, 1.5)
        return rng.uniform(low, high, shape).astype(np.float32)
    return (rng.uniform(-1, 1, shape) * np.sqrt(6 / np.prod(shape[1:]))).astype(np.float32)
