"""Linear probe: logistic regression on fixed features, its strength by held-out loss (Radford et al. 2021, A.3).

The solver is L-BFGS (Nocedal & Wright, "Numerical Optimization", algorithm 7.5) on the principal axes of the features,
where the Hessian is nearly diagonal: its diagonal, averaged over the classes, is the initial matrix. Logits are linear
in the params, so that a trial of the line search costs one product with the features, and the next gradient is its
by-product. The product of the gradient and the step is an estimate of the Newton decrement (Boyd & Vandenberghe,
section 9.5), twice the distance from the least objective. It is quadratic in the gradient and with it in the rounding
of the gradient, so that float32 reaches the stop test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from finetune.distributed.sharding import Placement
from finetune.trees import fetch

L2_GRID = tuple(10.0**e for e in range(-5, 3))

_TOLERANCE = 1e-11  # of the Newton decrement, relative to the objective: sums in another order give the same to 1e-6
_NOTHING = 1e-12  # nats, of an objective without a least value
_MEMORY = 10  # steps that L-BFGS remembers
_TRIALS = 20  # lengths of a step
_LARGEST_BATCH = 2**27  # logits of all folds together; where there are more, the folds are fitted one after another


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of features, and how it was found.

    Attributes:
        kernel: float32 [d, num_classes].
        bias: float32 [num_classes].
        l2: the strength.
        iterations: steps of the fit; with several strengths, from the solution of the next stronger one.
        converged: the stop test is met; otherwise the fit has ended at its limit of iterations, or where float32 shows
            no further progress.
        held_out: mean loss over the images held out, in nats per image, by strength; empty where none was chosen.
    """

    kernel: jax.Array
    bias: jax.Array
    l2: float
    iterations: int
    converged: bool
    held_out: dict[float, float]


def fit_linear_probe(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    l2: float | None = None,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    folds: int = 5,
    seed: int = 0,
    class_weights: np.ndarray | None = None,
    standardize: bool = False,
    grid: Sequence[float] = L2_GRID,
    max_iterations: int = 1000,
    placement: Placement | None = None,
) -> LinearProbe:
    """The best linear classifier of the features.

    Minimizes mean loss + l2 / (2 n) * ||kernel||^2; scikit-learn's ``C`` is ``1 / l2``. The bias is free.

    Args:
        features: float32 [n, d].
        labels: int [n], for the cross-entropy; or float32 [n, num_classes] of 0 and 1, for the sum over the classes of
            binary cross-entropies, scikit-learn's ``OneVsRestClassifier(LogisticRegression(C))``.
        l2: strength; None takes the one of ``grid`` with the least held-out loss, and 1.0 where nothing can be held
            out.
        validation: features and labels to be held out when the strength is chosen; None cross-validates.
        folds: parts of the cross-validation, stratified unless images have several labels; fewer where the rarest
            class has fewer images.
        seed: of the folds.
        class_weights: float32 [num_classes]; an image's loss counts as often as its class says, or where images have
            several labels the class's loss does. The mean is over images all the same, as with scikit-learn's
            ``class_weight``. Held-out losses are weighted, too.
        standardize: penalizes the kernel of features divided by their standard deviation, as behind scikit-learn's
            ``StandardScaler``; the result applies to the features as they are.
        grid: the strengths to choose from.
        max_iterations: limit of the steps for each strength.
        placement: on devices that share the images.
    """
    x, y = np.asarray(features, np.float32), _labels(labels)
    fitted, held_out = np.ones((1, len(x)), np.float32), np.zeros((1, len(x)), np.float32)
    if l2 is None and validation is not None:
        x, y = np.concatenate([x, np.asarray(validation[0], np.float32)]), np.concatenate([y, _labels(validation[1])])
        fitted = (np.arange(len(x)) < len(features)).astype(np.float32)[None]
        held_out = 1 - fitted
    elif l2 is None:
        parts = _folds(y, num_classes, folds, seed)
        # The last fit, of everything, is the one to keep.
        fitted, held_out = np.concatenate([1 - parts, fitted]), np.concatenate([parts, held_out])
    chosen = bool(held_out.any())
    strengths = sorted(grid, reverse=True) if chosen else [1.0 if l2 is None else l2]
    weights = np.ones(num_classes, np.float32) if class_weights is None else np.asarray(class_weights, np.float32)
    found = _choose(
        *_divided(x, y, fitted, held_out, placement),
        *(weights, np.asarray(strengths, np.float32), standardize, max_iterations),
    )
    kernels, biases, state, losses, best = jax.tree.map(fetch, found)
    by_strength = dict(zip(strengths, losses.tolist(), strict=True))
    return LinearProbe(
        jnp.asarray(kernels[-1]),
        jnp.asarray(biases[-1]),
        l2=strengths[int(best)],
        iterations=int(state.step[-1]),
        converged=bool(_has_converged(state.decrement[-1], state.value[-1])),
        held_out={strength: by_strength[strength] for strength in grid} if chosen else {},
    )


@dataclass(frozen=True)
class OutOfFold:
    """What linear probes say of images that they have not learned from.

    Attributes:
        logits: float32 [n, num_classes], of each image by the probe of its fold; NaN for images of no fold.
        l2: the strength.
        held_out: as of a :class:`LinearProbe`.
    """

    logits: np.ndarray
    l2: float
    held_out: dict[float, float]


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, num_classes: int, folds: np.ndarray, grid: Sequence[float] = L2_GRID
) -> OutOfFold:
    """A linear probe for each fold, fitted to the images of all others, at the strength with the least held-out loss.

    Args:
        features: float32 [n, d].
        labels: int [n].
        folds: int [n], the fold that holds an image out, from 0 on; -1 for images that every probe learns from.
        grid: the strengths to choose from.
    """
    x = np.asarray(features, np.float32)
    held_out = (folds == np.arange(folds.max() + 1)[:, None]).astype(np.float32)
    strengths = np.sort(np.asarray(grid, np.float32))[::-1]
    weights = np.ones(num_classes, np.float32)
    kernels, biases, _, losses, best = _choose(
        x, _labels(labels), 1 - held_out, held_out, weights, strengths, False, 1000
    )
    logits = np.full((len(x), num_classes), np.nan, np.float32)
    for fold, (kernel, bias) in enumerate(zip(np.asarray(kernels), np.asarray(biases), strict=True)):
        logits[folds == fold] = x[folds == fold] @ kernel + bias
    by_strength = dict(zip(strengths.tolist(), np.asarray(losses).tolist(), strict=True))
    return OutOfFold(logits, float(strengths[int(best)]), by_strength)


def _divided(
    x: np.ndarray, y: np.ndarray, fitted: np.ndarray, held_out: np.ndarray, placement: Placement | None
) -> tuple[Any, ...]:
    """Features, labels, and what is fitted and held out, on devices that share the images.

    Images that are there twice, so that all have equally many, count once.
    """
    if placement is None or placement.is_trivial:
        return x, y, fitted, held_out
    rows = np.arange(placement.round_up(len(x)))
    counts = rows < len(x)
    rows = rows % len(x)
    parts = [np.where(counts, part[:, rows], np.float32(0)) for part in (fitted, held_out)]
    of_images = [placement.put_as(part, placement.microbatches) for part in parts]
    return *(placement.put_as(array[rows], placement.batch) for array in (x, y)), *of_images


def _labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    return labels.astype(np.int32 if labels.ndim == 1 else np.float32)


def _folds(labels: np.ndarray, num_classes: int, folds: int, seed: int) -> np.ndarray:
    """The images that each fold holds out, as 0 and 1: float32 [folds, n], without folds where none can be."""
    from sklearn.model_selection import KFold, StratifiedKFold

    images = np.arange(len(labels))
    if labels.ndim == 2:
        splitter: Any = KFold
        folds = min(folds, len(labels))
    else:
        splitter = StratifiedKFold
        counts = np.bincount(labels, minlength=num_classes)
        images = np.flatnonzero(counts[labels] > 1)  # a class's only image cannot be both learned from and held out
        folds = min(folds, int(counts[counts > 1].min(initial=folds)))
    if len(images) < 2:
        return np.zeros((0, len(labels)), np.float32)
    held_out = np.zeros((folds, len(labels)), np.float32)
    for fold, (_, part) in enumerate(splitter(folds, shuffle=True, random_state=seed).split(images, labels[images])):
        held_out[fold, images[part]] = 1.0
    return held_out


class _Data(NamedTuple):
    """Examples on their principal axes.

    Attributes:
        x: float32 [axes + 1, n]: the coordinates, and a last row of 1 for the bias. This way round, both products with
            it are fast on CPUs: ``x.T @ params`` and ``x @ residuals``.
        y: the labels.
        variances: float32 [axes + 1, 1]: the means of the squares of the rows of ``x``.
    """

    x: jax.Array
    y: jax.Array
    variances: jax.Array


class _State(NamedTuple):
    params: jax.Array  # [axes + 1, C], the bias last
    value: jax.Array  # of the objective
    decrement: jax.Array  # the estimate of Newton's, before the last step
    step: jax.Array


@partial(jax.jit, static_argnames="standardize")
def _choose(
    features: jax.Array,
    labels: jax.Array,
    fitted: jax.Array,
    held_out: jax.Array,
    class_weights: jax.Array,
    strengths: jax.Array,
    standardize: bool,
    max_iterations: jax.Array,
) -> tuple[jax.Array, jax.Array, _State, jax.Array, jax.Array]:
    """The fits at the strength with the least held-out loss.

    Args:
        fitted: float32 [fits, n]: 1 for the images that a fit learns from; ``held_out``: for those it is measured on.
        strengths: float32 [S], the strongest first: each fit begins at the solution of the one before.

    Returns:
        kernels [fits, d, C], biases [fits, C], the solver's states, the mean held-out losses [S] and the index of the
        least of them.
    """
    # Of reduced precision, as is the default on GPUs and TPUs, the products would not let the stop test be met.
    with jax.default_matmul_precision("highest"):
        data, basis, centre = _principal_axes(features, labels, fitted[-1], standardize)
        by_image = class_weights[labels][:, None] if labels.ndim == 1 else class_weights[None]
        together = fitted.size * len(class_weights) <= _LARGEST_BATCH

        def fit(state: _State, kept: jax.Array, tested: jax.Array, l2: jax.Array) -> tuple[_State, jax.Array]:
            weight = kept[:, None] * by_image
            state = _minimize(data, weight, l2, kept.sum(), state.params, max_iterations)
            losses = _losses(data.x.T @ state.params, labels) * by_image
            return state, (losses * tested[:, None]).sum()

        def advance(carry: Any, l2: jax.Array) -> Any:
            states, best = carry
            states, losses = jax.lax.map(
                lambda part: fit(part[0], part[1], part[2], l2),
                (states, fitted, held_out),
                batch_size=len(fitted) if together and len(fitted) > 1 else None,
            )
            loss = losses.sum() / jnp.maximum(held_out.sum(), 1)
            best = jax.tree.map(partial(jnp.where, ~(loss >= best[0])), (loss, states), best)
            return (states, best), loss

        start = _State(
            jnp.zeros((len(data.x), len(class_weights))), jnp.asarray(1.0), jnp.asarray(jnp.inf), jnp.asarray(0)
        )
        each = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(fitted), *leaf.shape)), start)
        (_, (_, states)), losses = jax.lax.scan(advance, (each, (jnp.asarray(jnp.inf), each)), strengths)
        kernels = basis @ states.params[:, :-1]
        return kernels, states.params[:, -1] - centre @ kernels, states, losses, jnp.argmin(losses)


def _principal_axes(
    features: jax.Array, labels: jax.Array, fitted: jax.Array, standardize: bool
) -> tuple[_Data, jax.Array, jax.Array]:
    """The examples on axes that keep the norm of a kernel, the axes [d, axes] and the centre [d].

    The axes span the centred examples, and so, being a sum of gradients, the best kernel.
    """
    n, d = features.shape
    centre = features.mean(axis=0)
    x = features - centre  # the free bias takes the shift back
    scale = jnp.ones(d)
    if standardize:
        mean = fitted @ x / fitted.sum()
        deviation = jnp.sqrt(fitted @ (x - mean) ** 2 / fitted.sum())
        # as in scikit-learn, constant features are left alone: those whose deviation is rounding
        scale = jnp.where(deviation > 10 * jnp.finfo(jnp.float32).eps * jnp.abs(centre), deviation, 1.0)
        x = x / scale
    basis = jnp.eye(d)
    if n < d:
        basis, coordinates = jnp.linalg.qr(x.T)
        x = coordinates.T
    _, axes = jnp.linalg.eigh(x.T @ x)
    x = jnp.pad(axes.T @ x.T, ((0, 1), (0, 0)), constant_values=1.0)
    return _Data(x, labels, (x**2).mean(axis=1, keepdims=True)), (basis @ axes) / scale[:, None], centre


class _Point(NamedTuple):
    """What is known of the objective at some params [axes + 1, C], with ``slope`` along the direction of search."""

    params: jax.Array
    logits: jax.Array
    value: jax.Array
    gradient: jax.Array
    curvature: jax.Array
    slope: jax.Array


class _Memory(NamedTuple):
    """The last steps [memory, axes + 1, C], the changes of the gradient on them, and 1 / their products."""

    steps: jax.Array
    changes: jax.Array
    scales: jax.Array
    taken: jax.Array  # steps so far; step i is in row i % memory


def _minimize(
    data: _Data, weight: jax.Array, l2: jax.Array, count: jax.Array, params: jax.Array, max_iterations: jax.Array
) -> _State:
    """The params [axes + 1, C] of least sum(weight * losses) / count + l2 / (2 count) * ||params[:-1]||^2.

    Args:
        weight: float32 [n, 1], or [n, C] of the losses of several labels; examples of weight 0 are not there.
        params: the first guess.
    """
    x, y, variances = data
    weight = weight / count
    penalty = jnp.full((len(x), 1), l2 / count).at[-1].set(0.0)

    def evaluate(params: jax.Array, logits: jax.Array, direction: jax.Array) -> _Point:
        value = (weight * _losses(logits, y)).sum() + 0.5 * (penalty * params**2).sum()
        residuals = _residuals(logits, y)
        gradient = _centred(x @ (weight * residuals) + penalty * params, y)
        curvature = (weight * _variances(residuals)).sum() / logits.shape[1]
        return _Point(params, logits, value, gradient, curvature, (gradient * direction).sum())

    def step(carry: tuple[_Point, _Memory, jax.Array, jax.Array]) -> Any:
        point, memory, _, step = carry
        diagonal = point.curvature * variances + l2 / count  # also of the bias, which else would run ahead
        direction = -_quasi_newton(memory, point.gradient, lambda vector: _centred(vector / diagonal, y))
        point = point._replace(slope=(point.gradient * direction).sum())
        change = x.T @ direction

        def along(length: jax.Array) -> _Point:
            return evaluate(point.params + length * direction, point.logits + length * change, direction)

        there, found = _line_search(along, point)
        there = jax.tree.map(partial(jnp.where, found), there, point)
        memory = _remember(memory, there.params - point.params, there.gradient - point.gradient)
        return there, memory, jnp.where(found, -point.slope, jnp.inf), jnp.where(found, step + 1, max_iterations)

    def unfinished(carry: tuple[_Point, _Memory, jax.Array, jax.Array]) -> jax.Array:
        point, _, decrement, step = carry
        return ~_has_converged(decrement, point.value) & (step < max_iterations)

    first = evaluate(params, x.T @ params, params)
    rows = jnp.zeros((_MEMORY, *params.shape))
    memory = _Memory(rows, rows, jnp.zeros(_MEMORY), jnp.asarray(0))
    start = (first, memory, jnp.asarray(jnp.inf), jnp.asarray(0))
    point, _, decrement, steps = jax.lax.while_loop(unfinished, step, start)
    return _State(point.params, point.value, decrement, steps)


def _has_converged(decrement: jax.Array, value: jax.Array) -> jax.Array:
    return decrement <= _TOLERANCE * value + _NOTHING


def _quasi_newton(memory: _Memory, gradient: jax.Array, precondition: Any) -> jax.Array:
    """About the product of the inverse Hessian with the gradient: the two loops of L-BFGS."""
    steps, changes, scales, taken = memory
    kept = jnp.minimum(taken, _MEMORY)

    def newest_first(back: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        vector, shares = carry
        row = (taken - 1 - back) % _MEMORY
        share = scales[row] * (steps[row] * vector).sum()
        return vector - share * changes[row], shares.at[row].set(share)

    vector, shares = jax.lax.fori_loop(0, kept, newest_first, (gradient, jnp.zeros(_MEMORY)))
    row = (taken - 1) % _MEMORY
    measured = scales[row] * (changes[row] * precondition(changes[row])).sum()
    vector = precondition(vector) / jnp.where(taken > 0, measured, 1.0)

    def oldest_first(index: jax.Array, vector: jax.Array) -> jax.Array:
        row = (taken - kept + index) % _MEMORY
        return vector + (shares[row] - scales[row] * (changes[row] * vector).sum()) * steps[row]

    return jax.lax.fori_loop(0, kept, oldest_first, vector)


def _remember(memory: _Memory, step: jax.Array, change: jax.Array) -> _Memory:
    """Leaves out a step along which rounding hides that the gradient grows."""
    product = (step * change).sum()
    row = memory.taken % _MEMORY
    grown = _Memory(
        memory.steps.at[row].set(step),
        memory.changes.at[row].set(change),
        memory.scales.at[row].set(1 / product),
        memory.taken + 1,
    )
    return jax.tree.map(partial(jnp.where, product > 0), grown, memory)


def _line_search(along: Any, start: _Point) -> tuple[_Point, jax.Array]:
    """A point where the slope has become small, and whether there is one: from length 1 on, within a bracket.

    The conditions are the approximate ones of Hager & Zhang 2005 ("A new conjugate gradient method with guaranteed
    descent", section 4), which look at slopes, since differences of a float32 objective near its least are rounding.

    Args:
        along: the point at a length.
    """

    def is_far(point: _Point) -> jax.Array:
        return ~((point.slope <= -0.8 * start.slope) & (point.value <= start.value + 1e-6 * jnp.abs(start.value)))

    def is_near(point: _Point) -> jax.Array:
        return point.slope < 0.9 * start.slope

    def advance(carry: Any) -> Any:
        length, low, high, point, trial = carry
        low, high = jnp.where(is_far(point), low, length), jnp.where(is_far(point), length, high)
        secant = length * start.slope / (start.slope - point.slope)
        inside = (secant > low + 0.1 * (high - low)) & (secant < high - 0.1 * (high - low))
        length = jnp.where(jnp.isinf(high), 4 * length, jnp.where(inside, secant, (low + high) / 2))
        return length, low, high, along(length), trial + 1

    def unfinished(carry: Any) -> jax.Array:
        return (is_far(carry[3]) | is_near(carry[3])) & (carry[-1] < _TRIALS)

    one = jnp.asarray(1.0)
    end = jax.lax.while_loop(unfinished, advance, (one, jnp.asarray(0.0), jnp.asarray(jnp.inf), along(one), 1))
    return end[3], ~(is_far(end[3]) | is_near(end[3]))


def _losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropies [n, 1], or of several labels [n, C]; exact relative to themselves however small they are."""
    if labels.ndim == 2:
        return jax.nn.softplus((1 - 2 * labels) * logits)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    others = jnp.where(_is_own(logits, labels), -jnp.inf, logits - own)
    return jax.nn.softplus(jax.nn.logsumexp(others, axis=1, keepdims=True))


def _residuals(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Probabilities minus labels, the derivatives of the losses, [n, C].

    The sum of the others stands for 1 minus the probability of an image's own class, of which little is left where
    features separate the classes.
    """
    if labels.ndim == 2:
        return (1 - 2 * labels) * jax.nn.sigmoid((1 - 2 * labels) * logits)
    own = _is_own(logits, labels)
    others = jnp.where(own, 0.0, jax.nn.softmax(logits))
    return jnp.where(own, -others.sum(axis=1, keepdims=True), others)


def _variances(residuals: jax.Array) -> jax.Array:
    """p (1 - p), the second derivatives of the losses by each logit, [n, C]."""
    return jnp.abs(residuals) * (1 - jnp.abs(residuals))


def _is_own(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.arange(logits.shape[1]) == labels[:, None]


def _centred(params: jax.Array, labels: jax.Array) -> jax.Array:
    """Without what all classes share, which no probability depends on: rounding would be magnified there."""
    return params if labels.ndim == 2 else params - params.mean(axis=1, keepdims=True)
