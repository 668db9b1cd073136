"""Evaluation pixels compared with timm's, on images of odd sizes; test_spec.py compares with transformers."""

import numpy as np
import PIL
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
    if (label, size) == ("squash", "21x37") and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("Pillow 13, which made these, resizes rows first where that leaves fewer of them")
    pixels = spec_of(tmp_path, label).to_uint8(open_image(GOLDEN[f"source_{size}"]))
    np.testing.assert_array_equal(pixels, GOLDEN[f"{label}_{size}"])


@pytest.mark.parametrize("label", CONFIGS)
def test_normalized_pixels_equal_timms_and_the_formula(tmp_path, label):
    spec = spec_of(tmp_path, label)
    pixels = GOLDEN[f"{label}_37x21"]
    normalized = spec.normalize(pixels[None])[0]
    exact = (pixels / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_allclose(normalized, exact, rtol=0, atol=1e-6)
    np.testing.assert_allclose(normalized, GOLDEN[f"{label}_normalized"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_other_modes_are_converted_to_rgb_as_by_pillow(tmp_path, mode):
    """As timm and transformers do; for images of 16 bits, which Pillow would clip, see test_open.py."""
    source = Image.fromarray(GOLDEN["source_90x31"]).convert(mode)
    spec = spec_of(tmp_path, "bicubic")
    np.testing.assert_array_equal(spec.to_uint8(open_image(source)), spec.to_uint8(source.convert("RGB")))
