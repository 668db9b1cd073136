import numpy as np
import pytest
from PIL import Image, ImageOps

from finetune.data.policies import _RANGES, apply_policy, magnitude, operate, shift_hue
from finetune.recipe.augment import RandAugment, TrivialAugment

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


@pytest.mark.parametrize("name", _RANGES)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("negative", [False, True])
def test_every_operation_keeps_the_form_and_at_full_magnitude_changes_the_image(name, wide, negative):
    found = operate(IMAGE, name, magnitude(name, 1.0, wide=wide, negative=negative))
    assert (found.mode, found.size) == ("RGB", (60, 40))
    unchanged = {"identity", "autocontrast", "equalize"}  # on noise that fills the range already
    if name not in unchanged:
        assert not np.array_equal(np.asarray(found), np.asarray(IMAGE))


@pytest.mark.parametrize("name", sorted(set(_RANGES) - {"autocontrast", "equalize"}))
def test_at_no_magnitude_nothing_changes(name):
    np.testing.assert_array_equal(np.asarray(operate(IMAGE, name, 0.0)), np.asarray(IMAGE))


def test_operations_do_what_their_names_say():
    pixels = np.asarray(IMAGE)
    np.testing.assert_array_equal(np.asarray(operate(IMAGE, "translate_x", 7.0))[:, 7:], pixels[:, :-7])
    assert not np.asarray(operate(IMAGE, "translate_x", 7.0))[:, :7].any()
    np.testing.assert_array_equal(np.asarray(operate(IMAGE, "translate_y", -0.25))[:-10], pixels[10:])
    np.testing.assert_array_equal(np.asarray(operate(IMAGE, "posterize", 4.0)), pixels & 0xF0)
    np.testing.assert_array_equal(np.asarray(operate(IMAGE, "solarize", 256.0)), 255 - pixels)
    np.testing.assert_array_equal(
        np.asarray(operate(IMAGE, "color", -1.0)), np.asarray(ImageOps.grayscale(IMAGE).convert("RGB"))
    )


def test_magnitudes_are_a_share_of_each_range():
    assert magnitude("rotate", 0.3, wide=False, negative=False) == pytest.approx(9.0)
    assert magnitude("rotate", 1.0, wide=True, negative=True) == -135.0
    assert magnitude("posterize", 0.5, wide=False, negative=True) == 2.0


@pytest.mark.parametrize("policy", [RandAugment(num_ops=3), TrivialAugment()])
def test_a_policy_is_a_function_of_the_generator_and_reaches_many_outcomes(policy):
    def outcome(seed):
        return np.asarray(apply_policy(IMAGE, policy, np.random.default_rng(seed))).tobytes()

    assert [outcome(seed) for seed in range(5)] == [outcome(seed) for seed in range(5)]
    assert len({outcome(seed) for seed in range(40)}) > 20


def test_a_whole_turn_of_hue_is_none():
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    assert shift_hue(red, 1 / 3).getpixel((0, 0))[1] == 255
    assert shift_hue(red, 1.0).getpixel((0, 0)) == (255, 0, 0)
