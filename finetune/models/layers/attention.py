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

    It is ``jax.nn.dot_product_attention``, but for dropout of the weights, which that does not have.

    Args:
        query: [N, queries, heads, d].
        key, value: [N, tokens, heads, d].
        mask: bool, broadcastable to [N, heads, queries, tokens]; False hides a token.
        dropout: applied to the attention weights.

    Returns:
        [N, queries, heads, d], in the dtype of ``value``.
    """
    if dropout is None:
        return jax.nn.dot_product_attention(query, key, value, mask=mask)
    query = query * (query.shape[-1] ** -0.5)
    logits = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    weights = dropout(jax.nn.softmax(logits, axis=-1).astype(value.dtype))
    return jnp.einsum("nhqk,nkhd->nqhd", weights, value)
