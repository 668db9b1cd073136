import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from finetune.images.open import open_image
from finetune.images.spec import ImageSpec

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SPEC = ImageSpec(32, 32, 32, "bicubic", MEAN, STD)
CLIP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
UINT8 = {"do_rescale": False, "do_normalize": False}
SIZES = [(37, 61), (61, 37), (33, 32), (32, 32), (20, 11), (11, 20), (200, 199), (5, 64)]


def noise(width, height, mode="RGB"):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def processor(**options):
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Processor
    except ImportError:  # transformers 4.57 has it under another name
        from transformers.models.clip.image_processing_clip import CLIPImageProcessor as Processor
    return Processor(**options)


def transformers_pixels(image, **options):
    return processor(**options)(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_pixels_equal_those_of_transformers_bit_for_bit(size, mode):
    image = noise(*size, mode)
    expected = transformers_pixels(image, **CLIP, **UINT8)
    ours = SPEC.to_uint8(open_image(image))
    assert ours.dtype == expected.dtype == np.uint8
    np.testing.assert_array_equal(ours, expected)


def test_normalized_pixels_equal_those_of_transformers():
    image = noise(61, 37)
    expected = transformers_pixels(image, **CLIP, image_mean=MEAN, image_std=STD)
    ours = jax.jit(SPEC.normalize)(jnp.asarray(SPEC.to_uint8(image))[None])[0]
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("resize", [32, (20, 24), None])
def test_a_spec_survives_a_round_trip_through_json(resize):
    spec = ImageSpec(32, 30, resize, "bilinear", MEAN, STD)
    assert ImageSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        (32, 64, 64),
        (36, 64, 72),
        (36, 48, 54),
        (36, 16, 18),
        ((36, 36), 64, (72, 72)),
        ((40, 36), 48, (60, 54)),
        (37, 33, 38),  # 38.2, in whole pixels
        (None, 64, None),
    ],
)
def test_at_another_size_the_resize_is_scaled_in_proportion(resize, size, expected):
    spec = ImageSpec(32, 32, resize, "bilinear", MEAN, STD)
    assert spec.at(size) == ImageSpec(size, size, expected, "bilinear", MEAN, STD)


def test_at_its_present_size_a_spec_is_unchanged():
    spec = ImageSpec(224, 224, (256, 248), "bicubic", MEAN, STD)
    assert spec.at(224) == spec


def test_at_another_size_the_crop_shows_the_same_region():
    ramp = np.broadcast_to(np.linspace(0, 255, 160).astype(np.uint8)[None, :, None], (120, 160, 3))
    spec = ImageSpec(32, 32, 40, "bilinear", MEAN, STD)
    small, large = (each.to_uint8(Image.fromarray(ramp)).astype(float) for each in (spec, spec.at(96)))
    assert large.shape == (96, 96, 3)
    np.testing.assert_allclose(large.reshape(32, 3, 32, 3, 3).mean(axis=(1, 3)), small, atol=4)


@pytest.mark.parametrize(
    ("margin", "floor", "even"), [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 1, 2), (5, 2, 2), (7, 3, 4)]
)
def test_a_crop_between_two_pixels_is_rounded_as_each_library_does(margin, floor, even):
    columns = np.broadcast_to(np.arange(4 + margin, dtype=np.uint8)[:, None], (4, 4 + margin, 3))
    image = Image.fromarray(np.ascontiguousarray(columns))
    for rounding, left in (("floor", floor), ("even", even)):
        spec = ImageSpec(4, 4, None, "bicubic", MEAN, STD, rounding)
        assert spec.to_uint8(image)[0, 0, 0] == left


@pytest.mark.parametrize("size", [(65000, 1), (1, 65000), (40000, 30), (30, 40000), (50000, 400)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
def test_a_long_image_costs_what_is_kept_of_it(size, interpolation, monkeypatch):
    """A resize of all of it would take up to 14 GB; counted are the pixels of what Pillow makes."""
    made = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, to, *args: made.append(to) or resize(image, to, *args))
    spec = ImageSpec(224, 224, 224, interpolation, MEAN, STD)
    assert spec.to_uint8(noise(*size)).shape == (224, 224, 3)
    assert max(width * height for width, height in made) < 2_000_000


@pytest.mark.parametrize("size", [(3000, 100), (100, 3000), (100, 1), (1, 100), (9000, 300), (300, 9000)], ids=str)
@pytest.mark.parametrize("rounding", ["floor", "even"])
def test_a_long_images_pixels_are_those_of_the_whole_resize(size, rounding, monkeypatch):
    spec, image = ImageSpec(224, 200, 230, "bicubic", MEAN, STD, rounding), noise(*size)
    whole = spec.to_uint8(image)
    monkeypatch.setattr("finetune.images.spec._LONG", (1, 1))
    kept = spec.to_uint8(image)
    assert np.abs(kept.astype(int) - whole).max() <= 2


@pytest.mark.parametrize("size", [(8, 8), (37, 61)], ids=str)
def test_grey_equals_pillows_conversion(size):
    spec = ImageSpec(8, 8, 8, "bilinear", (0.5,), (0.25,))
    grey, color = spec.to_uint8(noise(*size)), ImageSpec(8, 8, 8, "bilinear", (0.5,) * 3, (0.25,) * 3)
    assert grey.shape == spec.shape == (8, 8, 1)
    np.testing.assert_array_equal(grey[..., 0], Image.fromarray(color.to_uint8(noise(*size))).convert("L"))
    np.testing.assert_allclose(spec.normalize(grey), (grey / 255 - 0.5) / 0.25, atol=1e-6)
    np.testing.assert_array_equal(spec.denormalize(spec.normalize(grey)), grey)


def test_every_grey_level_is_preserved():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    spec = ImageSpec(16, 16, None, "bilinear", (0.0,), (1.0,))
    np.testing.assert_array_equal(spec.to_uint8(open_image(levels))[..., 0], levels)


def test_only_images_of_the_models_size_are_neither_resized_nor_cropped():
    for resize, kept in ((None, True), (8, True), (9, False), ((8, 8), False)):
        assert ImageSpec(8, 8, resize, "bilinear", (0.0,), (1.0,)).leaves_size(8, 8) == kept
    assert not ImageSpec(8, 8, None, "bilinear", (0.0,), (1.0,)).leaves_size(9, 8)


def test_normalize_and_denormalize_accept_numpy_and_jax_arrays_also_inside_jit():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    normalized = SPEC.normalize(pixels)
    assert isinstance(normalized, np.ndarray)
    on_device = SPEC.normalize(jnp.asarray(pixels))
    assert isinstance(on_device, jax.Array)
    assert normalized.dtype == on_device.dtype == np.float32
    np.testing.assert_array_equal(on_device, normalized)
    np.testing.assert_allclose(jax.jit(SPEC.normalize)(pixels), normalized, rtol=0, atol=1e-6)  # XLA fuses the sum
    for restored in (
        SPEC.denormalize(normalized),
        SPEC.denormalize(on_device),
        jax.jit(SPEC.denormalize)(normalized),
    ):
        assert restored.dtype == np.uint8
        np.testing.assert_array_equal(restored, pixels)


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_denormalize_rounds_halves_to_even_and_clips(as_array):
    spec = ImageSpec(1, 6, None, "bilinear", (0.0,), (1.0,))
    values = np.float32([-2, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1, 3]).reshape(1, 1, 6, 1)
    exact = values.ravel() * np.float32(255)
    assert exact[1:4].tolist() == [0.5, 1.5, 2.5]
    assert np.asarray(spec.denormalize(as_array(values))).ravel().tolist() == [0, 0, 2, 2, 255, 255]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, r"size: needs edges of 1 to 4,096 pixels; received \(0, 32\)"),
        ({"width": 10**6}, "size: needs edges"),
        ({"height": 32.0}, "size: needs edges"),
        ({"height": True}, "size: needs edges"),
        ({"resize": 10**9}, "resize: needs edges of 1 to 16,384 pixels"),
        ({"resize": (32, -1)}, "resize: needs edges"),
        ({"resize": (32,)}, "resize: needs one edge, or height and width"),
        ({"std": (0.5, 0.0, 0.5)}, "std: needs numbers from 0.0001 to 10000"),
        ({"std": (0.5, float("nan"), 0.5)}, "std: needs numbers"),
        ({"std": (0.5,)}, "std: needs a number for each of 3 channels"),
        ({"mean": (float("inf"),) * 3}, "mean: needs numbers from -10000 to 10000"),
        ({"mean": ("0", "0", "0")}, "mean: needs numbers"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "mean: needs a number for each of 3 channels"),
        ({"interpolation": "sharp"}, "interpolation: choose nearest, .*; received 'sharp'"),
        ({"rounding": "up"}, "rounding: choose floor, even"),
    ],
)
def test_values_with_which_no_image_can_be_prepared_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **change)
