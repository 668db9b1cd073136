"""Everything that training changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from finetune.page.facts import ShownByFacts
from finetune.trees import count_values


@struct.dataclass(repr=False)
class TrainState(ShownByFacts):
    """What a train step takes and gives.

    Attributes:
        step: int32 scalar, steps taken.
        params: the trainable parameters, adapters under ``lora``; frozen ones are passed beside the state and never
            copied.
        collections: the other collections that change, such as the ``batch_stats`` that are not frozen.
        opt_state: of the optimizer over ``params``.
        rng: key data uint32 [...]; each step folds its number in.
        average: exponential moving average of ``params``; None where none is kept.
    """

    step: jax.Array
    params: Any
    collections: dict[str, Any]
    opt_state: Any
    rng: jax.Array
    average: Any = None

    def _facts(self) -> dict[str, Any]:
        return {
            "parameters": count_values(self.params),
            "optimizer_values": count_values(self.opt_state),
            "collections": tuple(self.collections) or None,
            "averaged": self.average is not None,
        }

    @classmethod
    def create(
        cls,
        params: Any,
        collections: dict[str, Any],
        optimizer: optax.GradientTransformation,
        rng: jax.Array,
        *,
        averaged: bool = False,
    ) -> TrainState:
        """A state at step 0. It owns its arrays: train steps may donate them, the caller's stay valid."""
        params, collections = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), (params, collections))
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            collections=collections,
            opt_state=optimizer.init(params),
            rng=jax.random.key_data(rng),
            average=jax.tree.map(jnp.copy, params) if averaged else None,
        )
