"""Activations stay divided by images, so that it is the parameters that travel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

from finetune.distributed.sharding import Placement


@contextmanager
def divided_by_images(placement: Placement | None, images: jax.Array) -> Iterator[None]:
    """While entered, what modules give of a batch is divided along its first axis, as the images are.

    XLA is free to divide a layer's outputs as its parameters are, which would send activations about where parameters
    are divided along fsdp. Other axes, such as those along tensor, are left to it.
    """
    if placement is None or placement.mesh.shape["fsdp"] * placement.mesh.shape["tensor"] == 1:
        yield
        return

    def constrained(value: Any) -> Any:
        if not isinstance(value, jax.Array) or value.ndim < 2 or value.shape[0] != len(images):
            return value
        spec = PartitionSpec(("data", "fsdp"), *(PartitionSpec.UNCONSTRAINED,) * (value.ndim - 1))
        return jax.lax.with_sharding_constraint(value, NamedSharding(placement.mesh, spec))

    def interceptor(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        return jax.tree.map(constrained, following(*args, **kwargs))

    with nn.intercept_methods(interceptor):
        yield
