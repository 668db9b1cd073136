import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
from photographs import encoded, photograph
from PIL import Image
from pydantic import ValidationError

from finetune.data.augment import jitter, make_training_transform, random_box
from finetune.images.open import open_image
from finetune.images.spec import ImageSpec
from finetune.recipe.augment import Augment, ColorJitter, RandomResizedCrop

SPEC = ImageSpec(32, 48, 40, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PHOTOGRAPH = encoded(photograph(100, 75))
EVERYTHING = {
    "random_resized_crop": {"scale": [0.2, 0.9]},
    "hflip": 0.5,
    "vflip": 0.5,
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "auto_augment": "randaugment",
}


def apply(augment, seed=0, image=PHOTOGRAPH):
    return make_training_transform(Augment.model_validate(augment), SPEC)(image, np.random.default_rng(seed))


def test_without_augmentation_an_image_is_prepared_as_in_evaluation():
    np.testing.assert_array_equal(apply({}), SPEC.to_uint8(open_image(PHOTOGRAPH)))


@pytest.mark.parametrize("key", EVERYTHING)
def test_each_augmentation_is_a_function_of_the_generator_and_keeps_dtype_and_shape(key):
    augment = {key: EVERYTHING[key]}
    images = [apply(augment, seed) for seed in range(8)]
    for seed, image in enumerate(images):
        assert (image.dtype, image.shape) == (np.uint8, (32, 48, 3))
        np.testing.assert_array_equal(image, apply(augment, seed))
    assert any(not np.array_equal(images[0], image) for image in images[1:])


def test_a_flip_of_probability_1_always_mirrors():
    np.testing.assert_array_equal(apply({"hflip": 1.0}), apply({})[:, ::-1])
    np.testing.assert_array_equal(apply({"vflip": 1.0}), apply({})[::-1])


def test_boxes_lie_within_the_image_and_the_ranges_of_area_and_ratio():
    rng = np.random.default_rng(0)
    crop = RandomResizedCrop(scale=(0.2, 0.6), ratio=(0.5, 2.0))
    boxes = np.array([random_box(400, 400, crop, rng) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 400).all()
    assert (bottom <= 400).all()
    area = (right - left) * (bottom - top) / (400 * 400)
    ratio = (right - left) / (bottom - top)
    assert 0.19 < area.min() < 0.22
    assert 0.58 < area.max() < 0.61
    assert 0.49 < ratio.min() < 0.55
    assert 1.8 < ratio.max() < 2.03
    assert abs(np.log(ratio).mean()) < 0.03  # as often tall as wide
    assert len(set(left.tolist())) > 100


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (1, 1), (1, 50)])
def test_if_no_box_fits_the_largest_central_one_is_taken(size):
    left, top, right, bottom = random_box(*size, RandomResizedCrop(scale=(1.0, 1.0)), np.random.default_rng(0))
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    assert abs(left - (size[0] - right)) <= 1


def test_a_process_without_jax_draws_the_same_images():
    code = (
        "import sys, hashlib, numpy as np; from finetune.data.augment import make_training_transform as make;"
        "from finetune.images.spec import ImageSpec; from finetune.recipe.augment import Augment;"
        "spec = ImageSpec(32, 48, 40, 'bicubic', (.5,) * 3, (.5,) * 3);"
        "image = np.arange(60 * 70 * 3, dtype=np.uint8).reshape(60, 70, 3);"
        f"pixels = make(Augment.model_validate({EVERYTHING!r}), spec)(image, np.random.default_rng(3));"
        "print('jax' in sys.modules, hashlib.sha256(pixels.tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    image = np.arange(60 * 70 * 3, dtype=np.uint8).reshape(60, 70, 3)
    assert out == ["False", hashlib.sha256(apply(EVERYTHING, 3, image).tobytes()).hexdigest()]


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitter_changes_an_image_only_by_strengths_above_zero(name):
    image = Image.fromarray(apply({}))
    changed = jitter(image, ColorJitter(**{name: 0.5}), np.random.default_rng(0))
    alone = jitter(image, ColorJitter(**{name: 0.5}, hue=0.0), np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(changed), np.asarray(alone))
    assert not np.array_equal(np.asarray(changed), np.asarray(image))


def test_brightness_stays_within_its_range():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    means = [np.asarray(jitter(grey, ColorJitter(brightness=0.3), np.random.default_rng(i))).mean() for i in range(200)]
    assert 69 <= min(means) < 75
    assert 125 < max(means) <= 131


@pytest.mark.parametrize(
    "augment",
    [
        {"random_resized_crop": {"scale": [0.5]}},
        {"random_resized_crop": {"scale": [0.9, 0.5]}},
        {"random_resized_crop": {"scale": [0.5, 1.5]}},
        {"random_erasing": {"area": [0.5, 2.0]}},
        {"random_resized_crop": {"ratio": [0, 1]}},
        {"hflip": 1.5},
        {"auto_augment": "autoaugment"},
        {"color_jitter": {"hue": 0.7}},
        {"random_erasing": {"probability": -1}},
        {"crops": {}},
    ],
)
def test_invalid_options_are_rejected(augment):
    with pytest.raises(ValidationError):
        Augment.model_validate(augment)


def test_true_means_the_default_crop():
    assert Augment.model_validate({"random_resized_crop": True}).random_resized_crop == RandomResizedCrop()
    assert math.isclose(RandomResizedCrop().ratio[0] * RandomResizedCrop().ratio[1], 1.0)
