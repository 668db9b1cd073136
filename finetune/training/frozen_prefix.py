"""The frozen prefix of a network: the part of its forward pass that depends on images and frozen values alone.

It is found in the traced program, so no model has to know of it. Each value of the program depends on frozen values
only, also on the images, or on anything that varies: trainable parameters, random keys, statistics that are updated.
What training needs of an image are the values of the second kind that equations of the third kind read. They are
computed once by the prefix, and the rest of the program goes on from there.

Which values are kept is a minimum cut: as few bytes of an image as possible, where cheap equations (elementwise,
normalization, movement of data) may be computed again behind the cut and matrix products and convolutions may not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun, jaxprs_in_params

FROZEN, IMAGE, VARYING = 0, 1, 2  # what a value depends on, at most

# never computed twice; of all others it is cheaper to compute them again than to keep them
_EXPENSIVE = {
    *("dot_general", "ragged_dot_general", "conv_general_dilated", "scan", "while", "cond", "sort", "top_k", "fft"),
    *("reduce_window", "reduce_window_max", "reduce_window_sum", "reduce_window_min", "select_and_scatter_add"),
    *("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "approx_top_k", "pure_callback", "custom_call"),
    *("cholesky", "eigh", "svd", "qr", "lu", "triangular_solve", "ffi_call", "rng_bit_generator"),
    "dot_product_attention_fwd_wrapper",  # cuDNN's kernel
}
_INLINED = {"jit", "pjit", "closed_call", "core_call"}
_INFINITE = 2**30


@dataclass(frozen=True)
class _Equation:
    """One equation of a program; values have numbers."""

    jaxpr: Any
    inputs: tuple[Any, ...]  # int, or a Literal
    outputs: tuple[int, ...]
    debug_info: Any

    @property
    def name(self) -> str:
        return str(self.jaxpr.primitive.name)

    @property
    def reads(self) -> list[int]:
        return [value for value in self.inputs if isinstance(value, int)]

    def apply(self, inputs: Iterable[Any]) -> list[Any]:
        """As a program of its own, so that JAX's own evaluator applies it."""
        values = {
            atom: value for atom, value in zip(self.jaxpr.invars, inputs, strict=True) if not isinstance(atom, Literal)
        }
        alone = Jaxpr((), list(values), self.jaxpr.outvars, [self.jaxpr], self.jaxpr.effects, self.debug_info)
        return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*values.values())


@dataclass
class _Program:
    """A traced function ``(varying, frozen, images) -> outputs``, without calls: their equations stand in their place.

    Attributes:
        avals: shape and dtype of every value, by number.
        varying, frozen, images: the numbers of the inputs.
        constants: number -> array that the function holds itself.
        outputs: number, or Literal, of each leaf.
    """

    equations: list[_Equation] = field(default_factory=list)
    avals: list[Any] = field(default_factory=list)
    varying: Sequence[int] = ()
    frozen: Sequence[int] = ()
    images: int = 0
    constants: dict[int, Any] = field(default_factory=dict)
    outputs: tuple[Any, ...] = ()
    out_tree: Any = None

    @classmethod
    def trace(cls, function: Callable[..., Any], varying: Any, frozen: Any, images: Any) -> _Program:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(varying, frozen, images)
        program = cls(out_tree=jax.tree.structure(shapes))
        inputs = [program._number(variable.aval) for variable in closed.jaxpr.invars]
        first, second = len(jax.tree.leaves(varying)), len(inputs) - 1
        program.varying, program.frozen, program.images = inputs[:first], inputs[first:second], inputs[second]
        program.outputs = tuple(program._inline(closed.jaxpr, closed.consts, inputs))
        needed = program.needed([value for value in program.outputs if isinstance(value, int)], ())
        program.equations = needed
        return program

    def _number(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def _inline(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        numbers: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, constant in zip(jaxpr.constvars, constants, strict=True):
            numbers[variable] = self._number(variable.aval)
            self.constants[numbers[variable]] = constant

        def read(atom: Any) -> Any:
            return atom if isinstance(atom, Literal) else numbers[atom]

        for equation in jaxpr.eqns:
            inputs = tuple(read(atom) for atom in equation.invars)
            if equation.primitive.name in _INLINED:
                [inner] = jaxprs_and_constants(equation.params)
                outputs: Sequence[Any] = self._inline(*inner, inputs)
            else:
                outputs = tuple(self._number(variable.aval) for variable in equation.outvars)
                self.equations.append(_Equation(equation, inputs, tuple(outputs), jaxpr.debug_info))
            numbers.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def needed(self, wanted: Iterable[int], known: Iterable[int]) -> list[_Equation]:
        """The equations that give the wanted values where others are known, in order."""
        wanted, known, chosen = set(wanted), set(known), []
        for equation in reversed(self.equations):
            if any(value in wanted and value not in known for value in equation.outputs):
                chosen.append(equation)
                wanted.update(equation.reads)
        return chosen[::-1]

    def evaluate(self, wanted: Sequence[Any], known: Mapping[int, Any]) -> list[Any]:
        """The wanted values, computed from those that are known."""
        values = {**self.constants, **known}

        def read(value: Any) -> Any:
            return value.val if isinstance(value, Literal) else values[value]

        for equation in self.needed([value for value in wanted if isinstance(value, int)], values):
            for number, result in zip(equation.outputs, equation.apply(map(read, equation.inputs)), strict=True):
                values.setdefault(number, result)
        return [read(value) for value in wanted]


def jaxprs_and_constants(params: Mapping[str, Any]) -> list[tuple[Any, Sequence[Any]]]:
    """The programs inside an equation."""
    closed = [value for value in params.values() if hasattr(value, "jaxpr") and hasattr(value, "consts")]
    return [(value.jaxpr, value.consts) for value in closed]


class FrozenPrefix:
    """A function of images, split where what is frozen ends.

    Both halves can be jitted, and the second differentiated. Where XLA fuses operations in another way than in the
    whole function, results differ by rounding.

    Attributes:
        kept: shape and dtype of each kept array, for one image.
    """

    def __init__(
        self, function: Callable[..., Any], varying: Any, frozen: Any, programs: Sequence[_Program], cut: list[int]
    ):
        program = programs[0]
        self._function, self._shapes, self._cut = function, _shapes((varying, frozen)), cut
        self._image = program.avals[program.images]
        self._count = len(program.equations)
        self._programs = {each.avals[each.images].shape[0]: each for each in programs}
        avals = [program.avals[number] for number in cut]
        self.kept = [jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype) for aval in avals]

    @property
    def bytes_per_image(self) -> int:
        return sum(math.prod(kept.shape) * kept.dtype.itemsize for kept in self.kept)

    def compute(self, frozen: Any, images: jax.Array) -> list[jax.Array]:
        """The kept values of images, each [N, ...]."""
        program = self._at(images.shape[0])
        known = dict(zip(program.frozen, jax.tree.leaves(frozen), strict=True))
        return program.evaluate(self._cut, {**known, program.images: images})

    def resume(self, varying: Any, frozen: Any, kept: Sequence[jax.Array]) -> Any:
        """What the function returns for the images whose kept values these are; other float dtypes are converted."""
        nothing_left = all(output in self._cut for output in self._any.outputs)
        program = self._any if nothing_left else self._at(kept[0].shape[0])
        values = [array.astype(program.avals[number].dtype) for number, array in zip(self._cut, kept, strict=True)]
        known = dict(zip(program.varying, jax.tree.leaves(varying), strict=True))
        known |= dict(zip(program.frozen, jax.tree.leaves(frozen), strict=True))
        outputs = program.evaluate(program.outputs, {**known, **dict(zip(self._cut, values, strict=True))})
        return jax.tree.unflatten(program.out_tree, outputs)

    def reads(self, frozen: Any) -> list[Any]:
        """The leaves of the frozen values that the kept values depend on."""
        program = self._any
        read = {number for equation in program.needed(self._cut, ()) for number in equation.reads}
        return [leaf for number, leaf in zip(program.frozen, jax.tree.leaves(frozen), strict=True) if number in read]

    @property
    def _any(self) -> _Program:
        """The program for one of the batch sizes."""
        return next(iter(self._programs.values()))

    def _at(self, batch_size: int) -> _Program:
        if batch_size not in self._programs:
            program = _trace(self._function, self._shapes, self._image, batch_size)
            if len(program.equations) != self._count:
                raise AssertionError(f"another program for a batch of {batch_size}")  # find_frozen_prefix ruled it out
            self._programs[batch_size] = program
        return self._programs[batch_size]


def find_frozen_prefix(
    function: Callable[..., Any], varying: Any, frozen: Any, image: jax.ShapeDtypeStruct, batch_sizes: tuple[int, int]
) -> FrozenPrefix | None:
    """Splits a function where what is frozen ends.

    Args:
        function: ``(varying, frozen, images) -> outputs``, of images [N, ...]; it can be traced.
        varying, frozen: trees of arrays, or of their shapes.
        image: shape and dtype of one image.
        batch_sizes: two different ones that it will be used with.

    Returns:
        None where there is nothing to compute once: no operation worth keeping is before the first varying value, or
        the values mix images, as batch normalization with the statistics of the batch does.
    """
    shapes = _shapes((varying, frozen))
    program, other = (_trace(function, shapes, image, size, single=True) for size in batch_sizes)
    if [equation.name for equation in program.equations] != [equation.name for equation in other.equations]:
        return None
    levels = _levels(program, other)
    cut = _minimum_cut(program, other, levels)
    return None if not cut or program.images in cut else FrozenPrefix(function, varying, frozen, (program, other), cut)


def _trace(function: Any, shapes: Any, image: Any, batch_size: int, single: bool = False) -> _Program:
    shape = (batch_size, *(image.shape if single else image.shape[1:]))
    varying, frozen = shapes
    return _Program.trace(function, varying, frozen, jax.ShapeDtypeStruct(shape, image.dtype))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)


def _levels(program: _Program, other: _Program) -> dict[int, int]:
    """What each value depends on. What mixes images depends on the batch, which varies."""
    levels = dict.fromkeys(program.varying, VARYING) | {program.images: IMAGE}
    for equation, same in zip(program.equations, other.equations, strict=True):
        level = max((levels.get(value, FROZEN) for value in equation.reads), default=FROZEN)
        if level == IMAGE and _mixes_images(equation.jaxpr, same.jaxpr):
            level = VARYING
        levels |= dict.fromkeys(equation.outputs, level)
    return levels


def _minimum_cut(program: _Program, other: _Program, levels: Mapping[int, int]) -> list[int]:
    """The values of level IMAGE to keep; of cuts with equally few bytes, the last."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    required = {value for value in program.outputs if isinstance(value, int) and levels.get(value) == IMAGE}
    edges: dict[tuple[int, int], int] = {}
    source, sink = 0, 1  # value v is an edge from node 2 v + 2 to 2 v + 3, as wide as its bytes
    edges[source, 2 * program.images + 2] = _INFINITE
    for equation in program.equations:
        reads = [value for value in equation.reads if levels.get(value) == IMAGE]
        level = levels[equation.outputs[0]]
        if level == VARYING:
            required.update(reads)
        for output in equation.outputs if level == IMAGE else ():
            if _is_expensive(equation.jaxpr):
                edges[source, 2 * output + 2] = _INFINITE
            else:
                edges |= {(2 * value + 3, 2 * output + 2): _INFINITE for value in reads}
    edges |= {(2 * value + 3, sink): _INFINITE for value in required}
    batch = program.avals[program.images].shape[0]
    for value, level in levels.items():
        if level == IMAGE:
            edges[2 * value + 2, 2 * value + 3] = _bytes_per_image(program.avals[value], other.avals[value], batch)
    size = 2 * len(program.avals) + 3
    start = size - 1  # one edge that bounds the flow
    edges[start, source] = _INFINITE
    rows, columns = zip(*edges, strict=True)
    capacity = csr_array((np.array(list(edges.values()), np.int32), (rows, columns)), shape=(size, size))
    result = maximum_flow(capacity, start, sink)
    if result.flow_value >= _INFINITE:
        return []
    left = (capacity - result.flow).tocsr()
    left.data = np.maximum(left.data, 0)
    left.eliminate_zeros()
    behind = set(breadth_first_order(left.T.tocsr(), sink, return_predecessors=False).tolist())
    images = [value for value, level in levels.items() if level == IMAGE]
    return sorted(value for value in images if 2 * value + 3 in behind and 2 * value + 2 not in behind)


def _bytes_per_image(aval: Any, other: Any, batch: int) -> int:
    """Infinite for a value that has no row for each image."""
    if _batch_axes(aval, other) != [0] or aval.shape[0] != batch:
        return _INFINITE
    return min(math.prod(aval.shape[1:]) * aval.dtype.itemsize, _INFINITE)


def _is_expensive(equation: Any) -> bool:
    inner = (inside for jaxpr in jaxprs_in_params(equation.params) for inside in jaxpr.eqns)
    return equation.primitive.name in _EXPENSIVE or any(_is_expensive(inside) for inside in inner)


def _batch_axes(aval: Any, other: Any) -> list[int]:
    """The axes that grow with the batch."""
    return [axis for axis, (a, b) in enumerate(zip(aval.shape, other.shape, strict=True)) if a != b]


def _mixes_images(equation: Any, other: Any) -> bool:
    """Whether a result for one image may depend on another image. ``other`` is the equation for another batch size.

    True where it cannot be told.
    """
    inputs = [(a.aval, _batch_axes(a.aval, b.aval)) for a, b in zip(equation.invars, other.invars, strict=True)]
    outputs = [_batch_axes(a.aval, b.aval) for a, b in zip(equation.outvars, other.outvars, strict=True)]
    if not any(axes for _, axes in inputs):
        return True  # of one image alone, or of a sum over all of them
    if any(len(axes) != 1 for axes in outputs) or any(len(axes) > 1 for _, axes in inputs):
        return True
    rule = _ALONG_THE_BATCH.get(equation.primitive.name)
    if rule is not None and any(axes and rule(equation, aval, axes[0], outputs[0][0]) for aval, axes in inputs):
        return True
    inner = zip(jaxprs_in_params(equation.params), jaxprs_in_params(other.params), strict=True)
    pairs = [pair for a, b in inner for pair in zip(a.eqns, b.eqns, strict=True)]
    return any(_mixes_images(a, b) for a, b in pairs if any(_batch_axes(x.aval, y.aval) for x, y in _atoms(a, b)))


def _atoms(equation: Any, other: Any) -> list[tuple[Any, Any]]:
    return list(zip([*equation.invars, *equation.outvars], [*other.invars, *other.outvars], strict=True))


def _moves_rows(equation: Any, aval: Any, axis: int, out: int) -> bool:
    """A reshape that gives images other rows: the axes before the batch have another size than before."""
    return math.prod(aval.shape[:axis]) != math.prod(equation.outvars[0].aval.shape[:out])


def _slices(equation: Any, aval: Any, axis: int, _: int) -> bool:
    params = equation.params
    sizes = params.get("slice_sizes")
    if sizes is not None:  # gather, dynamic_slice: of the operand; indices may have a batch
        return aval is equation.invars[0].aval and sizes[axis] != aval.shape[axis]
    whole = params["start_indices"][axis] == 0 and params["limit_indices"][axis] == aval.shape[axis]
    return not whole or bool(params["strides"] and params["strides"][axis] != 1)


def _along(*names: str) -> Callable[..., bool]:
    """Whether one of the equation's parameters names the batch axis."""

    def rule(equation: Any, aval: Any, axis: int, out: int) -> bool:
        values = [equation.params[name] for name in names if name in equation.params]
        return any(axis in value if isinstance(value, tuple | list) else axis == value for value in values)

    return rule


def _convolves(equation: Any, aval: Any, axis: int, _: int) -> bool:
    return bool(aval is not equation.invars[0].aval or axis != equation.params["dimension_numbers"].lhs_spec[0])


def _windows(equation: Any, aval: Any, axis: int, _: int) -> bool:
    return bool(equation.params["window_dimensions"][axis] != 1)


def _scans(equation: Any, aval: Any, axis: int, _: int) -> bool:
    """A loop over images, rather than over something else that is applied to all of them; its body is looked at too."""
    first = equation.params["num_consts"] + equation.params["num_carry"]
    return axis == 0 and any(aval is variable.aval for variable in equation.invars[first:])


def _always(*_: Any) -> bool:
    return True


_ALONG_THE_BATCH: dict[str, Callable[..., bool]] = {
    "reshape": _moves_rows,
    "slice": _slices,
    "dynamic_slice": _slices,
    "gather": _slices,
    "rev": _along("dimensions"),
    "sort": _along("dimension"),
    "top_k": lambda equation, aval, axis, out: axis == equation.params.get("axis", aval.ndim - 1),
    "concatenate": _along("dimension"),
    "pad": lambda equation, aval, axis, out: equation.params["padding_config"][axis] != (0, 0, 0),
    "conv_general_dilated": _convolves,
    "scan": _scans,
    "while": _always,
    "fft": lambda equation, aval, axis, out: axis >= aval.ndim - len(equation.params["fft_lengths"]),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along("axis")),
    **dict.fromkeys(("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"), _windows),
    **dict.fromkeys(("select_and_scatter_add", "select_and_gather_add"), _windows),
    **dict.fromkeys(("scatter", "scatter-add", "scatter_add", "scatter_mul", "dynamic_update_slice"), _always),
    **dict.fromkeys(("pure_callback", "io_callback", "custom_call", "ffi_call"), _always),
}
