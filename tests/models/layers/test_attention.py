import jax
import jax.numpy as jnp
import numpy as np
import pytest

from finetune.models.layers.attention import attention

CAUSAL = np.tril(np.ones((1, 1, 5, 5), bool))
PADDING = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)[:, None, None]
PER_HEAD = np.random.default_rng(1).random((2, 3, 5, 5)) < 0.7
PER_HEAD[..., 0] = True  # every query attends to something


def arrays(queries, dtype=np.float32):
    """Query, key and value of two images with three heads and five tokens."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((2, n, 3, 4)), dtype) for n in (queries, 5, 5)]


def test_attention_is_the_softmax_average_of_the_values_that_the_mask_shows():
    q, k, v = map(np.asarray, arrays(2))
    mask = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], bool)[None, None]
    expected = np.zeros_like(q)
    for n, h, i in np.ndindex(2, 3, 2):
        scores = np.where(mask[0, 0, i], np.exp(k[n, :, h] @ q[n, i, h] / 2), 0)  # 2 = sqrt(4)
        expected[n, i, h] = scores / scores.sum() @ v[n, :, h]
    np.testing.assert_allclose(attention(*arrays(2), mask), expected, atol=1e-5)


@pytest.mark.parametrize("mask", [None, CAUSAL, PADDING, CAUSAL & PADDING, PER_HEAD])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
def test_attention_equals_that_of_jax(mask, dtype, tolerance):
    query, key, value = arrays(5, dtype)
    expected = jax.nn.dot_product_attention(query, key, value, mask=None if mask is None else jnp.asarray(mask))
    result = attention(query, key, value, mask)
    assert result.dtype == expected.dtype == dtype
    np.testing.assert_allclose(result.astype(np.float32), expected.astype(np.float32), rtol=tolerance, atol=tolerance)


def test_dropout_is_applied_to_the_attention_weights():
    query, key, value = arrays(2)
    result = attention(query, key, value, dropout=lambda weights: jnp.ones_like(weights).at[..., 1:].set(0))
    np.testing.assert_array_equal(result, jnp.broadcast_to(value[:, :1], result.shape))
