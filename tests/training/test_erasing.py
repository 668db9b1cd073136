import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.training.erasing import erase

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
