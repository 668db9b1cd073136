"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial

import jax
import jax.numpy as jnp

_seen: ContextVar[list[jax.Array] | None] = ContextVar("seen", default=None)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Scaled dot-product attention ("Attention Is All You Need", section 3.2.1), with the softmax in float32.

    On an NVIDIA GPU it is cuDNN's fused kernel where that can compute it: 16-bit floats, self-attention, heads of a
    multiple of 8 and at most 128 channels, no mask and no dropout of the weights.

    Args:
        query: [N, queries, heads, d].
        key, value: [N, tokens, heads, d].
        mask: bool, broadcastable to [N, heads, queries, tokens]; False hides a token.
        dropout: applied to the attention weights.

    Returns:
        [N, queries, heads, d], in the dtype of ``value``.
    """
    if _seen.get() is not None:
        note_attention(_weights(query, key, mask))
    if mask is None and dropout is None and _is_fused(query, key):
        return _fused(query, key, value)
    if dropout is None and query.dtype == jnp.float32:
        return jax.nn.dot_product_attention(query, key, value, mask=mask)
    weights = _weights(query, key, mask).astype(value.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights if dropout is None else dropout(weights), value)


@contextmanager
def attention_seen() -> Iterator[list[jax.Array]]:
    """Within, the weights of each attention are noted in the order of the calls: float32 [..., heads, queries, tokens].

    Those of an attention that a fused kernel computes without them are computed beside it. A scan or a remat around
    the attention would keep them to itself.
    """
    noted: list[jax.Array] = []
    token = _seen.set(noted)
    try:
        yield noted
    finally:
        _seen.reset(token)


def note_attention(weights: jax.Array) -> None:
    """Adds an attention's weights to those of :func:`attention_seen`, where that is asked for."""
    if (noted := _seen.get()) is not None:
        noted.append(weights)


def _weights(query: jax.Array, key: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The softmax, float32 [N, heads, queries, tokens]."""
    logits = attention_logits(query, key) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    return jax.nn.softmax(logits, axis=-1)


def attention_logits(query: jax.Array, key: jax.Array) -> jax.Array:
    """``query key^T`` of each head, summed in float32. The gradients are matrix products of the operands' own dtype.

    Args:
        query: [..., queries, heads, d].
        key: [..., tokens, heads, d].

    Returns:
        float32 [..., heads, queries, tokens].
    """
    return _logits_of_16_bits(query, key) if query.dtype.itemsize == 2 else _logits(query, key)


def _logits(query: jax.Array, key: jax.Array) -> jax.Array:
    return _sum_in_float32("...qhd,...khd->...hqk", query, key)


# By JAX's own rule the gradients of 16-bit operands are float32 products, as the logits are float32; an accelerator
# computes those at a fraction of its speed.
_logits_of_16_bits = jax.custom_vjp(_logits)


def _forward(query: jax.Array, key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _logits(query, key), (query, key)


def _backward(operands: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    query, key = operands
    gradient = gradient.astype(query.dtype)
    to_query = _sum_in_float32("...hqk,...khd->...qhd", gradient, key)
    to_key = _sum_in_float32("...hqk,...qhd->...khd", gradient, query)
    return to_query.astype(query.dtype), to_key.astype(key.dtype)


_logits_of_16_bits.defvjp(_forward, _backward)
_sum_in_float32 = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _fused(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Self-attention by cuDNN's kernel, for whose gradients JAX takes even numbers of tokens only."""
    fused, tokens = partial(jax.nn.dot_product_attention, implementation="cudnn"), query.shape[1]
    if tokens % 2 == 0:
        return fused(query, key, value)
    padded = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
    lengths = jnp.full(query.shape[0], tokens, jnp.int32)
    return fused(*padded, query_seq_lengths=lengths, key_value_seq_lengths=lengths)[:, :tokens]


def _is_fused(query: jax.Array, key: jax.Array) -> bool:
    """Whether cuDNN's kernel can compute their attention."""
    head = query.shape[-1]
    fits = query.dtype.itemsize == 2 and query.shape == key.shape and head % 8 == 0 and head <= 128
    return fits and _has_cudnn()


@cache
def _has_cudnn() -> bool:
    """Whether programs are compiled for NVIDIA GPUs of the Ampere generation or later, which the kernel is for."""
    if jax.default_backend() != "gpu":
        return False
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # "9.0"; of an AMD GPU "gfx942"
    if not capability.replace(".", "", 1).isdecimal() or float(capability) < 8:
        return False
    example = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(_fused, example, example, example)
    except RuntimeError:  # cuDNN is not installed
        return False
    return True
