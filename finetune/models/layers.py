"""Building blocks that several model families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from finetune.errors import ModelError

Block = TypeVar("Block", bound=nn.Module)


@struct.dataclass
class BackboneOutput:
    """What every vision backbone returns.

    Attributes:
        last_hidden_state: float [N, tokens, features] (or [N, H, W, features] for a convolutional network);
            None when only the pooled features were asked for.
        pooler_output: float [N, features].
    """

    last_hidden_state: jax.Array | None
    pooler_output: jax.Array


def quick_gelu(x: jax.Array) -> jax.Array:
    """``x * sigmoid(1.702 x)``, the approximation of GELU that OpenAI trained CLIP with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation that a checkpoint's ``hidden_act`` names."""
    if name not in ACTIVATIONS:
        raise ModelError(f"hidden_act: unknown activation {name!r}; supported: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Scaled dot-product attention ("Attention Is All You Need", section 3.2.1), softmax in float32.

    Args:
        query: [N, queries, heads, d]; key, value: [N, tokens, heads, d].
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


def unit(x: jax.Array) -> jax.Array:
    """Vectors of length one along the last axis."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def drop_path(rate: float, dimensions: int) -> nn.Dropout:
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382) for a branch [N, ...] of so many dimensions.

    In training each image's whole branch is zero with probability ``rate``, and is scaled up otherwise.
    """
    return nn.Dropout(rate, broadcast_dims=tuple(range(1, dimensions)))


def rematerialized(block: type[Block], remat: bool, *, static: tuple[int, ...]) -> type[Block]:
    """The class of a block, made to recompute its activations in the backward pass where ``remat`` is set.

    Args:
        static: which arguments of its ``__call__`` are no arrays; ``self`` is number 0.
    """
    return nn.remat(block, static_argnums=static) if remat else block
