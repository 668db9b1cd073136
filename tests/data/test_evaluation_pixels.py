"""Evaluation's pixels beside timm's, on images of odd sizes; those of transformers are in test_image_spec.py."""

import numpy as np
import pytest
from paths import GOLDENS
from PIL import Image

from finetune.images.open import open_image
from finetune.weights.layout import Checkpoint
from finetune.weights.preprocessor import read_image_spec

GOLDEN = dict(np.load(GOLDENS / "timm-pixels" / "expected.npz"))
CONFIGS = {
    "bicubic": (32, "bicubic", 0.875, "center"),
    "bilinear": (33, "bilinear", 0.9, "center"),
    "whole": (24, "bicubic", 1.0, "center"),
    "squash": (29, "bicubic", 0.95, "squash"),
}
SIZES = [name.removeprefix("source_") for name in GOLDEN if name.startswith("source_")]


def spec_of(tmp_path, label):
    size, interpolation, crop_pct, crop_mode = CONFIGS[label]
    settings = {
        "input_size": [3, size, size],
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
    }
    return read_image_spec(Checkpoint(tmp_path, tmp_path / "config.json", "timm", "vit", {"pretrained_cfg": settings}))


@pytest.mark.parametrize("label", CONFIGS)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_timms_bit_for_bit(tmp_path, label, size):
    found = spec_of(tmp_path, label).to_uint8(open_image(GOLDEN[f"source_{size}"]))
    np.testing.assert_array_equal(found, GOLDEN[f"{label}_{size}"])


@pytest.mark.parametrize("label", CONFIGS)
def test_normalized_pixels_are_timms_and_the_closed_form(tmp_path, label):
    spec = spec_of(tmp_path, label)
    pixels = GOLDEN[f"{label}_37x21"]
    found = np.asarray(spec.normalize(pixels[None]))[0]
    exact = (pixels / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found, GOLDEN[f"{label}_normalized"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_other_modes_become_the_rgb_that_pillow_makes_of_them(tmp_path, mode):
    """As timm's and transformers' own ``convert("RGB")``; 16 bits, which that would clip, are in test_images.py."""
    source = Image.fromarray(GOLDEN["source_90x31"]).convert(mode)
    spec = spec_of(tmp_path, "bicubic")
    np.testing.assert_array_equal(spec.to_uint8(open_image(source)), spec.to_uint8(source.convert("RGB")))
