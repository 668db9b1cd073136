"""Optimizers by name, over optax: gradient to direction, all but the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

from finetune.recipe import Optimizer
from finetune.trees import map_paths

Mask = Callable[[Any], Any]


def build_core(optimizer: Optimizer, weight_decay: float, mask: Mask) -> optax.GradientTransformation:
    """Everything up to, and without, the multiplication by minus the learning rate.

    Args:
        weight_decay: strength; see the optimizer for whether it is coupled.
        mask: tree -> tree of booleans, of the leaves that decay.
    """
    decay = optax.add_decayed_weights(weight_decay, mask) if weight_decay else optax.identity()
    return _CORES[optimizer.name](optimizer, decay)


def _sgd(given: Any, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(decay, optax.trace(given.momentum, given.nesterov) if given.momentum else optax.identity())


def _adam(given: Any, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(decay, optax.scale_by_adam(given.b1, given.b2, given.eps))


def _adamw(given: Any, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(given.b1, given.b2, given.eps), decay)


def _lion(given: Any, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_lion(given.b1, given.b2), decay)


def _adafactor(given: Any, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=given.decay_rate), optax.clip_by_block_rms(given.clip), decay
    )


def _lamb(given: Any, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(given.b1, given.b2, given.eps), decay, optax.scale_by_trust_ratio())


def _lars(given: Any, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    momentum = optax.trace(given.momentum) if given.momentum else optax.identity()
    return optax.chain(decay, optax.scale_by_trust_ratio(trust_coefficient=given.trust), momentum)


def _muon(given: Any, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    def label(path: str, leaf: Any) -> str:
        dense = leaf.ndim == 2 and path.rsplit("/", 1)[-1] in ("kernel", "lora_a", "lora_b")
        return "orthogonalized" if dense else "adam"

    def as_large_as_adams(updates: Any, params: Any) -> Any:
        """Root mean square 0.2, about that of Adam's updates, so that one learning rate suits both."""
        return jax.tree.map(lambda update: 0.2 * max(update.shape) ** 0.5 * update, updates)

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(), tree)

    momentum = contrib.scale_by_muon(beta=given.momentum, nesterov=given.nesterov, weight_dimension_numbers=shapes)
    orthogonalized = optax.chain(momentum, optax.stateless(as_large_as_adams))
    transforms = {"orthogonalized": orthogonalized, "adam": optax.scale_by_adam(given.b1, given.b2)}
    return optax.chain(optax.multi_transform(transforms, lambda tree: map_paths(label, tree)), decay)


_CORES: dict[str, Callable[[Any, optax.GradientTransformation], optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "lion": _lion,
    "adafactor": _adafactor,
    "lamb": _lamb,
    "lars": _lars,
    "muon": _muon,
}
