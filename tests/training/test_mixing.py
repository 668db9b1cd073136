import jax
import jax.numpy as jnp
import numpy as np

from finetune.training.mixing import mix

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
    assert np.array_equal(mixed(3, 0.4, 1.0)[0], mixed(3, 0.4, 1.0)[0])
    assert not np.array_equal(mixed(3, 0.4, 1.0)[0], mixed(4, 0.4, 1.0)[0])
