import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.training.device_augment import erase, mix

ONES = jnp.ones((400, 32, 48, 3))


def erased(probability=1.0, area=(0.1, 0.3), seed=0):
    return np.asarray(jax.jit(erase, static_argnums=(2, 3))(ONES, jax.random.key(seed), probability, area))


def test_each_box_is_one_rectangle_over_all_channels_of_the_share_asked_for():
    gone = erased() == 0
    assert (gone.all(-1) == gone.any(-1)).all()
    for image in gone[..., 0]:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert image.sum() == len(rows) * len(columns)
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    share = gone[..., 0].mean((1, 2))
    assert 0.07 < share.min() < share.max() < 0.33
    assert share.mean() == pytest.approx(0.2, abs=0.02)


def test_boxes_fall_everywhere_and_in_all_shapes():
    gone = erased()[..., 0] == 0
    assert gone.any(0)[2:-2, 2:-2].all()
    tall = gone.any(2).sum(1) > gone.any(1).sum(1)
    assert 0.3 < tall.mean() < 0.7


def test_the_probability_is_that_of_an_image():
    touched = (erased(0.25) == 0).any((1, 2, 3))
    assert touched.mean() == pytest.approx(0.25, abs=0.07)
    assert not (erased(0.0) == 0).any()


def test_it_is_a_function_of_the_key():
    np.testing.assert_array_equal(erased(seed=1), erased(seed=1))
    assert not np.array_equal(erased(seed=1), erased(seed=2))


RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((6, 16, 12, 3)).astype(np.float32)
TARGETS = np.eye(6, dtype=np.float32)


def mixed(seed, mixup, cutmix):
    images, targets = jax.jit(mix, static_argnums=(3, 4))(
        jnp.asarray(IMAGES), jnp.asarray(TARGETS), jax.random.key(seed), mixup, cutmix
    )
    return np.asarray(images), np.asarray(targets)


def shares(targets):
    """How much of itself each image kept."""
    assert np.allclose(targets.sum(1), 1)
    kept = np.diag(targets)
    np.testing.assert_allclose(targets[np.arange(6), np.arange(6)[::-1]], 1 - kept, atol=1e-6)
    return kept


def test_mixup_is_a_convex_combination_of_images_and_of_labels_by_one_share():
    found = set()
    for seed in range(5):
        images, targets = mixed(seed, 1.0, 0.0)
        kept = shares(targets)
        assert np.ptp(kept) < 1e-6
        np.testing.assert_allclose(images, kept[0] * IMAGES + (1 - kept[0]) * IMAGES[::-1], atol=1e-5)
        found.add(float(kept[0]))
    assert len(found) == 5


def test_cutmix_pastes_a_box_and_its_labels_have_exactly_its_share_of_the_pixels():
    sizes = []
    for seed in range(8):
        images, targets = mixed(seed, 0.0, 1.0)
        own, other = (np.all(images == source, axis=-1) for source in (IMAGES, IMAGES[::-1]))
        assert np.all(own ^ other)
        np.testing.assert_allclose(shares(targets), own.mean((1, 2)), atol=1e-6)
        rows, columns = other[0].any(1), other[0].any(0)
        assert np.array_equal(other[0], rows[:, None] & columns[None, :])
        sizes.append(other[0].mean())
    assert max(sizes) > 0.3 > min(sizes)


def test_with_both_each_batch_takes_one_of_them():
    pasted = []
    for seed in range(16):
        images, _ = mixed(seed, 1.0, 1.0)
        pasted.append(np.all((images == IMAGES) | (images == IMAGES[::-1])))
    assert 3 < sum(pasted) < 13


def test_the_key_decides():
    assert np.array_equal(mixed(3, 1.0, 1.0)[0], mixed(3, 1.0, 1.0)[0])
    assert not np.array_equal(mixed(3, 1.0, 1.0)[0], mixed(4, 1.0, 1.0)[0])
