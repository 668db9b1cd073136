"""Equal blocks that are traced and compiled once, by a ``jax.lax.scan`` over their stacked parameters.

The tree of parameters stays as it is: their leaves are stacked where the network is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import Scope

from finetune.models.lora import adapters_of_first, stacked_adapters


class Block(Protocol):
    """A Linen module with stochastic depth of its own: ``drop_path_rate`` may be a traced number."""

    drop_path_rate: Any


def split_runs(blocks: Sequence[nn.Module], lengths: Sequence[int]) -> Iterator[Sequence[nn.Module]]:
    """The blocks in runs of these lengths; without lengths, and while parameters are made, each block alone."""
    if blocks and blocks[0].is_initializing():
        lengths = ()
    rest = blocks
    for length in lengths or [1] * len(blocks):
        if rest:
            yield rest[:length]
        rest = rest[length:]


def apply_run(
    blocks: Sequence[nn.Module], hidden: jax.Array, call: Callable[[nn.Module, jax.Array], jax.Array], *, random: bool
) -> jax.Array:
    """``hidden`` through blocks of the same class and shapes, one after the other.

    Random numbers are others than without a scan, and independent from block to block. Interceptors see the first
    block's modules alone, once for all blocks; adapters are those of each block all the same.

    Args:
        blocks: bound :class:`Block` modules whose parameters are all that they have.
        call: calls one of them.
        random: whether they draw random numbers. Where they do not, they depend on no key.
    """
    first = blocks[0]
    if len(blocks) == 1:
        return call(first, hidden)
    paths = ["/".join(block.path) for block in blocks]
    rates = [cast(Block, block).drop_path_rate for block in blocks]
    stacked = {
        "variables": jax.tree.map(lambda *leaves: jnp.stack(leaves), *(block.variables for block in blocks)),
        "adapters": stacked_adapters(paths),
        "rate": jnp.asarray(rates, jnp.float32) if random else None,
        "key": jax.random.split(first.make_rng("dropout"), len(blocks)) if random else None,
    }

    def step(hidden: jax.Array, own: dict[str, Any]) -> tuple[jax.Array, None]:
        rngs = {} if own["key"] is None else {"dropout": own["key"]}
        scope = Scope(own["variables"], rngs, name=first.name, path=first.path)
        changes = {} if own["rate"] is None else {"drop_path_rate": own["rate"]}
        with adapters_of_first(paths, own["adapters"]):
            return call(first.clone(parent=scope, **changes), hidden), None

    return jax.lax.scan(step, hidden, stacked)[0]
