"""Rotary positions; that they are PyTorch's is tested with the families that have them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.models.layers.rotary import patch_rotation

KINDS = ("centers", "indices", "indices_xy")
HEAD = 8


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("rope", KINDS)
def test_lengths_do_not_change_and_tokens_in_front_of_the_patches_do_not_turn(rope):
    rotation = patch_rotation(rope, (3, 5), HEAD, prefix=2, base=100.0)
    x = random(0, 2, 17, 4, HEAD)
    turned = rotation(x)
    np.testing.assert_array_equal(turned[:, :2], x[:, :2])
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    assert (jnp.abs(turned - x)[:, 2:].max(axis=(0, 2, 3)) > 0).sum() >= 14  # all patches but one at the origin


@pytest.mark.parametrize("rope", KINDS)
def test_the_product_of_query_and_key_depends_on_the_distance_of_their_patches_only(rope):
    rotation = patch_rotation(rope, (6, 6), HEAD, prefix=0, base=100.0)
    query, key = (rotation(jnp.broadcast_to(random(i, HEAD), (1, 36, 1, HEAD)))[0, :, 0] for i in (1, 2))
    products = np.asarray(query @ key.T).reshape(6, 6, 6, 6)  # row and column of the query, then of the key
    for shift in ((1, 0), (0, 1), (2, 3)):
        moved = products[shift[0] :, shift[1] :, shift[0] :, shift[1] :]
        still = products[: 6 - shift[0], : 6 - shift[1], : 6 - shift[0], : 6 - shift[1]]
        np.testing.assert_allclose(moved, still, atol=1e-5)
    assert products.std() > 0.1


def test_the_first_tokens_alone_turn_as_among_all():
    rotation = patch_rotation("centers", (4, 4), HEAD, prefix=1, base=100.0)
    x = random(3, 1, 17, 2, HEAD)
    np.testing.assert_array_equal(rotation(x[:, :5]), rotation(x)[:, :5])


def test_indices_are_scaled_to_the_grid_of_pretraining():
    small, large = (patch_rotation("indices", (n, n), HEAD, prefix=0, base=1e4, reference=8) for n in (8, 16))
    of_large = large.cos.reshape(16, 16, -1)[::2, ::2].reshape(64, -1)
    np.testing.assert_allclose(of_large, small.cos, atol=1e-6)


def test_centers_reach_equally_far_on_both_axes_of_any_grid():
    rotation = patch_rotation("centers", (2, 6), 4, prefix=0, base=100.0)
    angles = np.arctan2(rotation.sin, rotation.cos).reshape(2, 6, 2)
    np.testing.assert_allclose(np.abs(angles[:, 0, 0]), np.pi, atol=1e-5)  # half of 2 pi, of 2 rows
    np.testing.assert_allclose(angles[0, :, 1], -angles[0, ::-1, 1], atol=1e-5)


@pytest.mark.parametrize("rope", KINDS)
def test_the_dtype_stays(rope):
    rotation = patch_rotation(rope, (2, 2), HEAD, prefix=0, base=100.0)
    assert rotation(random(0, 1, 4, 1, HEAD).astype(jnp.bfloat16)).dtype == jnp.bfloat16
