"""The backbones' output, activations, stochastic depth and rematerialization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from finetune.errors import ModelError
from finetune.page.facts import ShownByFacts

Block = TypeVar("Block", bound=nn.Module)


@struct.dataclass(repr=False)
class BackboneOutput(ShownByFacts):
    """What every vision backbone returns.

    Attributes:
        last_hidden_state: float [N, tokens, features] (or [N, H, W, features] for a convolutional network);
            None where only the pooled features were requested.
        pooler_output: float [N, features].
    """

    last_hidden_state: jax.Array | None
    pooler_output: jax.Array

    def _facts(self) -> dict[str, Any]:
        return {name: f"{a.dtype}{list(a.shape)}" for name, a in vars(self).items() if hasattr(a, "shape")}


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
    """The activation that a checkpoint's ``hidden_act`` names.

    Raises:
        ModelError: it is unknown; lists the known ones.
    """
    if name not in ACTIVATIONS:
        raise ModelError(f"hidden_act: unknown activation {name!r}; supported: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def l2_normalize(x: jax.Array) -> jax.Array:
    """Scales vectors along the last axis to length one."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382).

    During training, an image's branch is set to zero with probability ``rate``, and divided by ``1 - rate`` otherwise.

    Attributes:
        rate: from 0 to less than 1; a number, or a traced one.
    """

    rate: float | jax.Array

    def __call__(self, branch: jax.Array, deterministic: bool) -> jax.Array:
        """The branch, [N, ...]."""
        if deterministic or (not isinstance(self.rate, jax.Array) and self.rate == 0):
            return branch
        shape = (len(branch), *[1] * (branch.ndim - 1))
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
        return jnp.where(kept, (branch / (1 - self.rate)).astype(branch.dtype), jnp.zeros_like(branch))


def rematerialized(block: type[Block], remat: bool, *, static: tuple[int, ...]) -> type[Block]:
    """The class of a block, which with ``remat`` recomputes its activations in the backward pass (``nn.remat``).

    Args:
        static: positions of the arguments of ``__call__`` that are not arrays; ``self`` is at 0.
    """
    return nn.remat(block, static_argnums=static) if remat else block
