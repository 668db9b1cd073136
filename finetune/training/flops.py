"""FLOPs of a program by XLA's analysis, with every turn of its loops."""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import jaxpr_as_fun


def count_flops(traced: Any, lowered: Any, compiled: Any, devices: int = 1) -> float:
    """FLOPs of all devices together.

    XLA counts the body of a loop once; what its other turns take, as of accumulated gradients or of scanned layers, is
    added. On several devices the program before its partition is counted, and so is a program whose matrix products
    became calls to a library, of which XLA counts nothing.

    Args:
        traced, lowered, compiled: the same program, a ``jax.stages.Traced`` and what it gives.
    """
    before, after = _flops(lowered), _flops(compiled)
    return (before if devices > 1 or after < 0.5 * before else after) + _of_further_turns(traced.jaxpr.jaxpr)


def count_lowered(traced: Any) -> float:
    """The same of a traced program alone, which is not compiled for it."""
    return _flops(traced.lower()) + _of_further_turns(traced.jaxpr.jaxpr)


def _of_further_turns(jaxpr: Any) -> float:
    """Of the loops within: what their second and later turns take."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            body, turns = equation.params["jaxpr"], equation.params["length"]
            inner = _of_further_turns(body.jaxpr)
            total += inner + (turns - 1) * (_of_body(body) + inner)
        else:
            total += sum(_of_further_turns(inner) for inner in _inner(equation.params))
    return total


def _of_body(body: Any) -> float:
    arguments = [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in body.jaxpr.invars]
    return _flops(jax.jit(jaxpr_as_fun(body)).lower(*arguments))


def _inner(params: dict[str, Any]) -> list[Any]:
    """The programs among an equation's parameters."""
    values = [x for value in params.values() for x in (value if isinstance(value, tuple | list) else (value,))]
    jaxprs = [getattr(value, "jaxpr", value) for value in values]
    return [jaxpr for jaxpr in jaxprs if hasattr(jaxpr, "eqns")]


def _flops(program: Any) -> float:
    analysis = program.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return max(0.0, float(analysis.get("flops", 0.0)))
