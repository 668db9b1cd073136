"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Scaled dot-product attention ("Attention Is All You Need", section 3.2.1), with the softmax in float32.

    Equal to ``jax.nn.dot_product_attention``, which has no dropout of the weights, runs slower on CPUs, and asks for
    matrix products that not every device has: in bfloat16, NVIDIA GPUs before Ampere refuse them; in float16, CPUs.

    Args:
        query: [N, queries, heads, d].
        key, value: [N, tokens, heads, d].
        mask: bool, broadcastable to [N, heads, queries, tokens]; False hides a token.
        dropout: applied to the attention weights.

    Returns:
        [N, queries, heads, d], in the dtype of ``value``.
    """
    query = query * (query.shape[-1] ** -0.5)
    logits = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, value)
