from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from finetune.data import policies
from finetune.data.policies import _RANGES, apply_policy, magnitude, operate, shift_hue
from finetune.recipe.augment import RandAugment, TrivialAugment

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
GOLDEN = dict(np.load(Path(__file__).parent.parent / "goldens" / "augment-policies" / "expected.npz"))
SOURCE = Image.fromarray(GOLDEN["source"])
SPACES = ["randaugment", "trivialaugment"]


def golden(kind, space, name):
    return GOLDEN[f"{kind}_{space}_{name.replace('_', '')}"]


def is_signed(name):
    return len(golden("images", "randaugment", name)) == 2


def our_magnitude(space, name, level, negative=False):
    return magnitude(name, level, SOURCE.size, wide=space == "trivialaugment", negative=negative)


@pytest.mark.parametrize("space", SPACES)
def test_the_operations_are_torchvisions(space):
    prefix = f"images_{space}_"
    assert {name.replace("_", "") for name in _RANGES} == {
        key.removeprefix(prefix) for key in GOLDEN if key.startswith(prefix)
    }


@pytest.mark.parametrize("name", _RANGES)
@pytest.mark.parametrize("space", SPACES)
def test_every_magnitude_equals_torchvisions_bit_for_bit(space, name):
    expected = golden("magnitudes", space, name)
    for negative, sign in ((False, 1), (True, -1 if is_signed(name) else 1)):
        ours = [our_magnitude(space, name, level, negative) for level in range(31)]
        np.testing.assert_array_equal(ours, sign * expected)


@pytest.mark.parametrize("name", _RANGES)
@pytest.mark.parametrize("space", SPACES)
def test_every_operation_equals_torchvisions_bit_for_bit(space, name):
    for negative, images in zip((False, True), golden("images", space, name), strict=False):  # some have no sign
        for level, expected in zip(GOLDEN["bins"], images, strict=True):
            ours = operate(SOURCE, name, our_magnitude(space, name, level, negative))
            np.testing.assert_array_equal(np.asarray(ours), expected, err_msg=f"bin {level}, negative: {negative}")


@pytest.mark.parametrize("name", _RANGES)
@pytest.mark.parametrize("space", SPACES)
def test_a_magnitude_between_two_bins_lies_between_theirs(space, name):
    for level in (0, 9, 14, 15, 29):
        low, between, high = (our_magnitude(space, name, level + share) for share in (0, 0.25, 1))
        expected = low + 0.25 * (high - low)
        assert between == pytest.approx(expected, abs=0.5 if name == "posterize" else 1e-4)


@pytest.mark.parametrize(("space", "policy"), [("randaugment", RandAugment()), ("trivialaugment", TrivialAugment())])
def test_what_is_drawn_is_what_torchvision_draws(space, policy, monkeypatch):
    drawn = Counter()
    monkeypatch.setattr(policies, "operate", lambda image, name, value: drawn.update([(name, value)]) or image)
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        apply_policy(SOURCE, policy, rng)

    expected = Counter()
    for name in _RANGES:
        values = golden("magnitudes", space, name)[[9] if space == "randaugment" else slice(None)]
        for value in values.tolist():
            for sign in (1, -1) if is_signed(name) else (1, 1):
                expected[name, sign * value] += 1 / 14 / len(values) / 2
    assert drawn.keys() == expected.keys()
    total = drawn.total()
    assert total == 20_000 * (2 if space == "randaugment" else 1)
    for outcome, share in expected.items():
        assert abs(drawn[outcome] - total * share) < 5 * np.sqrt(total * share)


@pytest.mark.parametrize("name", _RANGES)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("negative", [False, True])
def test_every_operation_keeps_the_form_and_at_full_magnitude_changes_the_image(name, wide, negative):
    result = operate(IMAGE, name, magnitude(name, 30, IMAGE.size, wide=wide, negative=negative))
    assert (result.mode, result.size) == ("RGB", (60, 40))
    unchanged = {"identity", "autocontrast", "equalize"}  # on noise that fills the range already
    if name not in unchanged:
        assert not np.array_equal(np.asarray(result), np.asarray(IMAGE))


@pytest.mark.parametrize("name", sorted(set(_RANGES) - {"autocontrast", "equalize"}))
def test_at_no_magnitude_nothing_changes_but_solarize_inverts_white(name):
    pixels = np.asarray(IMAGE)
    expected = np.where(pixels == 255, 0, pixels) if name == "solarize" else pixels
    result = operate(IMAGE, name, magnitude(name, 0, IMAGE.size, wide=False, negative=False))
    np.testing.assert_array_equal(np.asarray(result), expected)


def test_operations_do_what_their_names_say():
    pixels = np.asarray(IMAGE)
    np.testing.assert_array_equal(np.asarray(operate(IMAGE, "translate_x", 7.9))[:, 7:], pixels[:, :-7])
    assert not np.asarray(operate(IMAGE, "translate_x", 7.9))[:, :7].any()
    np.testing.assert_array_equal(np.asarray(operate(IMAGE, "translate_y", -10.0))[:-10], pixels[10:])
    np.testing.assert_array_equal(np.asarray(operate(IMAGE, "posterize", 4)), pixels & 0xF0)
    np.testing.assert_array_equal(np.asarray(operate(IMAGE, "solarize", 0.0)), 255 - pixels)
    np.testing.assert_array_equal(
        np.asarray(operate(IMAGE, "solarize", 127.5)), np.where(pixels > 127, 255 - pixels, pixels)
    )
    np.testing.assert_array_equal(
        np.asarray(operate(IMAGE, "color", -1.0)), np.asarray(ImageOps.grayscale(IMAGE).convert("RGB"))
    )


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
