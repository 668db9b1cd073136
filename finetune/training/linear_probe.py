"""Linear probe: logistic regression on fixed features by full-batch L-BFGS (Radford et al. 2021, appendix A.3)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

L2_GRID = tuple(10.0**e for e in range(-5, 3))


def fit_linear_probe(
    features: np.ndarray, labels: np.ndarray, num_classes: int, l2: float | None = None, folds: int = 5, seed: int = 0
) -> tuple[jax.Array, jax.Array, float]:
    """The best linear classifier on the features.

    Minimizes mean cross-entropy + l2 / (2 n) * ||kernel||^2; scikit-learn's ``C`` is ``1 / l2``. The bias is free.

    Args:
        features: float32 [n, d]; labels: int [n].
        l2: strength; None takes the one of ``L2_GRID`` with the least cross-validated loss.
        folds: parts of the stratified cross-validation; fewer where the rarest class has fewer images.
        seed: of the folds.

    Returns:
        kernel [d, num_classes], bias [num_classes], and the l2 used.
    """
    x, y = jnp.asarray(features, jnp.float32), jnp.asarray(labels)
    # Features are centred for the solver's sake; the free bias takes the shift back, so the optimum is the same.
    centre = x.mean(axis=0)
    everything = jnp.ones(len(y))
    if l2 is None:
        l2 = _choose_l2(x - centre, y, num_classes, folds, seed)
    kernel, bias = _minimize(x - centre, y, everything, l2, num_classes)
    return kernel, bias - centre @ kernel, l2


def _choose_l2(x: jax.Array, y: jax.Array, num_classes: int, folds: int, seed: int) -> float:
    from sklearn.model_selection import StratifiedKFold

    labels = np.asarray(y)
    counts = np.bincount(labels, minlength=num_classes)
    several = np.flatnonzero(counts[labels] > 1)  # the only image of a class cannot be both learned from and held out
    if not len(several):
        return 1.0
    folds = min(folds, int(counts[counts > 1].min()))
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    kept = np.ones((folds, len(y)), np.float32)
    for fold, (_, held_out) in enumerate(splitter.split(several, labels[several])):
        kept[fold, several[held_out]] = 0.0
    losses = [sum(float(_held_out_loss(x, y, weight, l2, num_classes)) for weight in kept) for l2 in L2_GRID]
    return L2_GRID[int(np.argmin(losses))]


@partial(jax.jit, static_argnames="num_classes")
def _held_out_loss(x: jax.Array, y: jax.Array, weight: jax.Array, l2: float, num_classes: int) -> jax.Array:
    kernel, bias = _minimize(x, y, weight, l2, num_classes)
    losses = optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias, y)
    return (losses * (1 - weight)).sum()


@partial(jax.jit, static_argnames="num_classes")
def _minimize(
    x: jax.Array, y: jax.Array, weight: jax.Array, l2: float, num_classes: int, max_iterations: int = 500
) -> tuple[jax.Array, jax.Array]:
    """L-BFGS until the gradient is small; examples of weight 0 are not there."""
    count = weight.sum()

    def objective(params: tuple[jax.Array, jax.Array]) -> jax.Array:
        kernel, bias = params
        losses = optax.softmax_cross_entropy_with_integer_labels(x @ kernel + bias, y)
        return (losses * weight).sum() / count + 0.5 * l2 / count * (kernel**2).sum()

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def advance(carry: Any) -> Any:
        params, state, _, step = carry
        value, gradient = value_and_grad(params, state=state)
        updates, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=objective)
        return optax.apply_updates(params, updates), state, optax.tree.norm(gradient), step + 1

    def unfinished(carry: Any) -> Any:
        _, _, norm, step = carry
        return (norm > 1e-6) & (step < max_iterations)

    params = (jnp.zeros((x.shape[1], num_classes)), jnp.zeros(num_classes))
    params, *_ = jax.lax.while_loop(unfinished, advance, (params, solver.init(params), jnp.inf, 0))
    return params
