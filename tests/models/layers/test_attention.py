from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from finetune.models.layers import attention as attention_file
from finetune.models.layers.attention import attention, attention_seen
from finetune.models.layers.windows import biased_attention

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


@pytest.mark.parametrize("way", [partial(attention, mask=CAUSAL), partial(biased_attention, bias=None, scale=0.5)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_are_noted_where_that_is_asked_for_and_change_nothing(way, dtype):
    query, key, value = arrays(5, dtype)
    with attention_seen() as seen:
        result = way(query, key, value)
    np.testing.assert_array_equal(result, way(query, key, value))
    [weights] = seen
    assert (weights.shape, weights.dtype) == ((2, 3, 5, 5), jnp.float32)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    averages = np.einsum("nhqk,nkhd->nqhd", weights, value.astype(np.float32))
    np.testing.assert_allclose(result.astype(np.float32), averages, atol=1e-6 if dtype == jnp.float32 else 0.02)


def halve(weights):
    return weights * 0.5


BIAS = np.random.default_rng(2).standard_normal((3, 5, 5)).astype(np.float32)
WAYS = {
    "plain": attention,
    "masked": partial(attention, mask=PER_HEAD),
    "with dropout": partial(attention, dropout=halve),
    "biased": partial(biased_attention, bias=BIAS, scale=0.5),
}


def gradients(way):
    return jax.grad(lambda *inputs: jnp.sin(way(*inputs).astype(jnp.float32)).sum(), argnums=(0, 1, 2))


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_matrix_product_of_16_bit_attention_and_of_its_gradients_has_16_bit_operands(way):
    jaxpr = jax.make_jaxpr(gradients(way))(*arrays(5, jnp.bfloat16)).jaxpr
    products = [[x.aval.dtype for x in e.invars] for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    assert len(products) == 6  # two forward, two for the gradients of each
    assert all(dtype == jnp.bfloat16 for operands in products for dtype in operands)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_gradients_of_16_bit_attention_are_those_of_float32_rounded(way):
    rounded = arrays(5, jnp.bfloat16)
    expected = jax.jit(gradients(way))(*[x.astype(jnp.float32) for x in rounded])
    for result, exact in zip(jax.jit(gradients(way))(*rounded), expected, strict=True):
        assert result.dtype == jnp.bfloat16
        # two roundings to 8 bits: of the weights or the logits' gradient, and of the result
        np.testing.assert_allclose(result.astype(np.float32), exact, rtol=0, atol=2**-7 * np.abs(exact).max())


@pytest.fixture
def gpu(monkeypatch):
    """Programs are made for a GPU of the Hopper generation, of which none need be here to look at them."""
    library = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(library, "check_cudnn_version", lambda: 91400)
    monkeypatch.setattr(library, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(library, "is_cuda_compute_capability_equal", lambda capability: False)
    monkeypatch.setattr(attention_file, "_has_cudnn", lambda: True)


def program_for_gpus(way, queries=5, tokens=5, dtype=jnp.bfloat16, head=8):
    query, key = (jax.ShapeDtypeStruct((2, length, 3, head), dtype) for length in (queries, tokens))
    return jax.jit(gradients(way)).trace(query, key, key).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("tokens", [5, 6])
def test_self_attention_of_16_bits_is_the_fused_kernel_on_a_gpu(gpu, tokens):
    program = program_for_gpus(attention, tokens, tokens)
    assert "__cudnn$fmhaSoftmax(" in program
    assert "__cudnn$fmhaSoftmaxBackward(" in program
    assert "dot_general" not in program


@pytest.mark.parametrize(
    "case",
    [
        {"way": WAYS["masked"]},
        {"way": WAYS["with dropout"]},
        {"way": attention, "dtype": jnp.float32},
        {"way": attention, "queries": 1},
        {"way": attention, "head": 4},
        {"way": attention, "head": 136},
    ],
)
def test_other_attention_is_not(gpu, case):
    assert "__cudnn" not in program_for_gpus(**case)


def test_without_a_gpu_it_is_not():
    assert not attention_file._has_cudnn()
