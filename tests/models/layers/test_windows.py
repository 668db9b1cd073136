from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from finetune.models.layers.windows import merge, partition, relative_index, resample_table, shift_bias


def test_merging_is_the_inverse_of_partitioning():
    x = np.arange(2 * 6 * 8 * 3, dtype=np.float32).reshape(2, 6, 8, 3)
    windows = partition(jnp.asarray(x), (3, 4))
    assert windows.shape == (2, 4, 12, 3)
    np.testing.assert_array_equal(windows[0, 1], x[0, :3, 4:].reshape(12, 3))
    np.testing.assert_array_equal(merge(windows, (3, 4), (6, 8)), x)


def test_pairs_of_tokens_with_the_same_offset_share_a_row_of_the_table():
    index = relative_index((2, 3))
    assert index.shape == (6, 6)
    assert index[0, 1] == index[1, 2] == index[3, 4]
    assert len(np.unique(index)) == 3 * 5
    assert index[0, 5] == 0  # two tokens to the left and one up
    assert index[5, 0] == 14


def test_only_the_windows_at_the_far_edges_keep_tokens_apart():
    bias = shift_bias((8, 8), (4, 4), (2, 2), -100.0)
    assert bias.shape == (4, 1, 16, 16)
    assert not bias[0].any()
    assert all(bias[i].any() for i in (1, 2, 3))
    rows_apart = shift_bias((8, 4), (4, 4), (2, 0), -100.0)[1, 0].reshape(4, 4, 4, 4)
    assert not rows_apart[:2, :, :2].any()
    assert (rows_apart[:2, :, 2:] == -100).all()


@pytest.mark.parametrize("resampling", ["linear", "geometric"])
@pytest.mark.parametrize("new", [(2, 2), (5, 3), (9, 9)])
def test_a_resampled_table_keeps_a_constant_and_the_middle(resampling, new):
    rng = np.random.default_rng(0)
    table = np.stack([np.full(49, 3.0), rng.standard_normal(49)], axis=1).astype(np.float32)
    resampled = np.asarray(resample_table(jnp.asarray(table), (4, 4), new, resampling))
    assert resampled.shape == ((2 * new[0] - 1) * (2 * new[1] - 1), 2)
    np.testing.assert_allclose(resampled[:, 0], 3.0, rtol=1e-6)
    np.testing.assert_allclose(resampled[len(resampled) // 2], table[24], rtol=1e-6)
    assert resample_table(table, (4, 4), (4, 4), resampling) is table
