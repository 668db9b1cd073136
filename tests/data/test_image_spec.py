import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from finetune.data.image_spec import ImageSpec
from finetune.data.images import open_image
from finetune.errors import ModelError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SPEC = ImageSpec(32, 32, 32, "bicubic", MEAN, STD)
CLIP = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
UINT8 = {"do_rescale": False, "do_normalize": False}
SIZES = [(37, 61), (61, 37), (33, 32), (32, 32), (20, 11), (11, 20), (200, 199), (5, 64)]


def picture(width, height, mode="RGB"):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def processor(**options):
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Processor
    except ImportError:  # transformers 4.57 has it under another name
        from transformers.models.clip.image_processing_clip import CLIPImageProcessor as Processor
    return Processor(**options)


def theirs(image, **options):
    return processor(**options)(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_pixels_are_those_of_transformers_bit_for_bit(size, mode):
    image = picture(*size, mode)
    expected = theirs(image, **CLIP, **UINT8)
    ours = SPEC.to_uint8(open_image(image))
    assert ours.dtype == expected.dtype == np.uint8
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 31, "width": 32}},  # smaller than the crop: black edges
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 24}, "resample": 2},
        {"size": {"height": 20, "width": 24}, "do_center_crop": False},
        {"do_resize": False, "crop_size": {"height": 32, "width": 32}},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(37, 61), (61, 30), (24, 24)], ids=str)
def test_every_form_of_a_processors_configuration_is_followed(options, size):
    spec = ImageSpec.from_preprocessor({**options, "image_mean": MEAN, "image_std": STD}, "here")
    np.testing.assert_array_equal(spec.to_uint8(picture(*size)), theirs(picture(*size), **options, **UINT8))


def test_normalized_pixels_are_those_of_transformers():
    image = picture(61, 37)
    expected = theirs(image, **CLIP, image_mean=MEAN, image_std=STD)
    ours = jax.jit(SPEC.normalize)(jnp.asarray(SPEC.to_uint8(image))[None])[0]
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("resize", [32, (20, 24), None])
def test_a_spec_survives_json(resize):
    spec = ImageSpec(32, 30, resize, "bilinear", MEAN, STD)
    assert ImageSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_processor_without_normalization_only_scales_to_one():
    spec = ImageSpec.from_preprocessor({**CLIP, "do_normalize": False}, "here")
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1).repeat(3, -1)
    np.testing.assert_allclose(spec.normalize(jnp.asarray(images))[0, 0, :, 0], [0, 0.2, 1], atol=1e-7)


@pytest.mark.parametrize("size", [24, {"shortest_edge": 24}, {"height": 24, "width": 24}], ids=str)
def test_a_crop_size_is_read_in_each_form_it_has_had(size):
    spec = ImageSpec.from_preprocessor({"size": 30, "crop_size": size, "image_mean": MEAN, "image_std": STD}, "here")
    assert (spec.height, spec.width, spec.resize) == (24, 24, 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rescale_factor": 1 / 127.5}, "only a rescale by 1/255 is supported; received 0.0078"),
        ({"do_center_crop": False}, "without a centre crop, size needs height and width"),
        ({"size": {"longest_edge": 32}}, "has no 'height'"),
        ({"image_mean": [0.5]}, "not the configuration of an image processor"),
    ],
)
def test_a_processor_that_cannot_be_followed_is_refused(changes, message):
    with pytest.raises(ModelError, match=f"here.json: {message}"):
        ImageSpec.from_preprocessor({**CLIP, "image_mean": MEAN, "image_std": STD, **changes}, "here.json")
