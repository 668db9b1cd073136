"""Pictures with the smoothness of photographs, for tests."""

import io

import numpy as np
from PIL import Image


def photograph(width, height, seed=0):
    """Noise of many scales, the coarse ones strongest."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cell in (4, 8, 16, 32, 64):
        small = Image.fromarray(rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3), np.uint8))
        total += cell * np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), float)
    low, high = total.min(), total.max()
    return Image.fromarray(((total - low) / (high - low) * 255).astype(np.uint8))


def encoded(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **({"quality": 90} if format == "JPEG" else {}) | options)
    return file.getvalue()
