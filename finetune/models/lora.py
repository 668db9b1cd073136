"""Low-rank adapters on the kernels of dense layers and 1 x 1 convolutions of any Linen module: LoRA and DoRA.

LoRA (Hu et al. 2021, arXiv:2106.09685) learns ``kernel + scale * lora_a @ lora_b`` with the kernel fixed; DoRA (Liu et
al. 2024, arXiv:2402.09353) learns the length of each of its columns as well. A tree of adapters has ``lora_a``
[in, rank], ``lora_b`` [rank, out] and, for DoRA, ``magnitude`` [out] where the parameters have ``kernel`` [in, out],
or [1, 1, in, out]: such a convolution is a dense layer at each position.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from finetune.errors import PartitionError
from finetune.trees import fetch

Adapter = dict[str, jax.Array]


def init_adapters(kernels: Any, *, rank: int, dora: bool, rng: jax.Array) -> dict[str, Any]:
    """Fresh adapters, which change nothing yet: ``lora_a`` is uniform within 1 / sqrt(in), ``lora_b`` is zero.

    Args:
        kernels: tree whose leaves are kernels [in, out] or [1, 1, in, out].
        rng: each kernel's key is folded from its path, so that it does not depend on what else is adapted.

    Raises:
        PartitionError: a leaf that is no such kernel, one too small for the rank, or for DoRA one with columns of
            zeros, such as a head that begins at zero.
    """
    adapters: dict[tuple[str, ...], jax.Array] = {}
    for path, kernel in flatten_dict(kernels).items():
        name = "/".join(path)
        if path[-1] != "kernel" or not (kernel.ndim == 2 or (kernel.ndim == 4 and kernel.shape[:2] == (1, 1))):
            raise PartitionError(
                f"lora: {name} {tuple(kernel.shape)} is not the kernel of a dense layer [in, out] or of a 1 x 1 "
                "convolution; match such kernels alone, for example '.*_proj/kernel'"
            )
        width, out = kernel.shape[-2:]
        if rank > (most := min(width, out)):
            raise PartitionError(f"lora: rank {rank} is more than {name} {tuple(kernel.shape)} can have, {most}")
        key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
        bound = width**-0.5
        adapters[*path[:-1], "lora_a"] = jax.random.uniform(key, (width, rank), jnp.float32, -bound, bound)
        adapters[*path[:-1], "lora_b"] = jnp.zeros((rank, out), jnp.float32)
        if dora:
            dense = fetch(kernel).reshape(width, out)  # on the host: a trace has no values
            norms = np.linalg.norm(dense.astype(np.float32), axis=0)
            if not norms.all():
                raise PartitionError(
                    f"lora: {name} has columns of zeros, which have no direction; use lora without dora, "
                    "or let this kernel learn itself"
                )
            adapters[*path[:-1], "magnitude"] = jnp.asarray(norms)
    return unflatten_dict(adapters)


def merge_adapters(params: Any, adapters: Any, scales: Mapping[str, float]) -> dict[str, Any]:
    """``params`` with the adapters folded into their kernels; all other leaves are shared.

    Args:
        scales: path of a module, joined by ``/`` -> alpha / rank.
    """
    flat = flatten_dict(params)
    for module, adapter in _by_module(adapters).items():
        key = (*module.split("/"), "kernel")
        flat[key] = _merged(flat[key], adapter, scales[module])
    return unflatten_dict(flat)


@jax.jit
def _merged(kernel: jax.Array, adapter: Adapter, scale: float) -> jax.Array:
    combined = _combined(kernel, adapter, scale)
    if "magnitude" in adapter:
        combined = combined * (adapter["magnitude"] / _column_norms(combined))
    return combined.astype(kernel.dtype).reshape(kernel.shape)


@dataclass
class _Adapters:
    """Those that a network computes with, by the path of their module, and the paths that it came to."""

    modules: dict[str, Adapter]
    used: set[str] = field(default_factory=set)


_ACTIVE: ContextVar[_Adapters | None] = ContextVar("active adapters", default=None)


def stacked_adapters(blocks: Sequence[str]) -> dict[str, Adapter]:
    """The adapters inside equal blocks, by the path in the block, with a first axis for the blocks.

    Args:
        blocks: paths; within :func:`adapted`, whose scales are the same for all of them.
    """
    active = _ACTIVE.get()
    modules = active.modules if active else {}
    inside = [
        {path.removeprefix(f"{block}/"): adapter for path, adapter in modules.items() if path.startswith(f"{block}/")}
        for block in blocks
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *inside)


@contextmanager
def adapters_of_first(blocks: Sequence[str], inside: Mapping[str, Adapter]) -> Iterator[None]:
    """Within it, the first block, which stands for all, has the adapters ``inside``, by the path in the block."""
    if (active := _ACTIVE.get()) is None:
        yield
        return
    before = active.modules
    active.modules = {**before, **{f"{blocks[0]}/{path}": adapter for path, adapter in inside.items()}}
    try:
        yield
    finally:
        active.modules = before
    used = [path for path in inside if f"{blocks[0]}/{path}" in active.used]
    active.used.update(f"{block}/{path}" for block in blocks for path in used)


@contextmanager
def adapted(adapters: Any, scales: Mapping[str, float]) -> Iterator[None]:
    """Within it, each ``nn.Dense`` and each 1 x 1 ``nn.Conv`` that has an adapter computes with it.

    The adapter is a branch of its own, x @ lora_a @ lora_b: the gradient of the kernel is never formed. DoRA's column
    norms count as constants, as in its section 4.3.

    Args:
        adapters: their paths begin at the module that is applied; they may be what a surrounding ``jax.grad``,
            ``jax.jit`` or ``nn.remat`` traces.
        scales: path of a module, joined by ``/`` -> alpha / rank.

    Raises:
        PartitionError: adapters of modules that the model did not call as such layers.
    """
    active = _Adapters(_by_module(adapters))

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, plain = context.module, call(*args, **kwargs)
        if context.method_name != "__call__" or not isinstance(module, nn.Dense | nn.Conv):
            return plain
        path = "/".join(module.path)
        # not a subclass's own method: it would come by here once more when it calls super().__call__
        if path not in active.modules or type(module).__call__ not in (nn.Dense.__call__, nn.Conv.__call__):
            return plain
        inputs = args[0] if args else kwargs["inputs"]
        if isinstance(module, nn.Conv):
            if not _is_pointwise(module):
                return plain
            inputs = _at_outputs(module, inputs)
        active.used.add(path)
        return _adapt(module, inputs, plain, active.modules[path], scales[path])

    token = _ACTIVE.set(active)
    try:
        with nn.intercept_methods(intercept):
            yield
    finally:
        _ACTIVE.reset(token)
    if unused := sorted(active.modules.keys() - active.used):
        raise PartitionError(
            f"lora: {', '.join(unused[:3])}: no dense layer or 1 x 1 convolution of the model is called by that name"
        )


def _is_pointwise(module: nn.Conv) -> bool:
    """Whether it computes each output from one position."""
    size = (module.kernel_size,) if isinstance(module.kernel_size, int) else tuple(module.kernel_size)
    padding = module.padding if isinstance(module.padding, str) else np.any(module.padding)
    return set(size) == {1} and module.feature_group_count == 1 and padding in ("SAME", "VALID", False)


def _at_outputs(module: nn.Conv, x: jax.Array) -> jax.Array:
    """The inputs, [N, H, W, C], at the positions that a 1 x 1 convolution computes."""
    strides = module.strides or 1
    rows, columns = (strides, strides) if isinstance(strides, int) else strides
    return x[:, ::rows, ::columns]


def _adapt(module: nn.Dense | nn.Conv, x: jax.Array, plain: jax.Array, adapter: Adapter, scale: float) -> jax.Array:
    dtype, matmul = plain.dtype, partial(jnp.matmul, precision=module.precision)
    a, b = adapter["lora_a"].astype(dtype), adapter["lora_b"].astype(dtype)
    branch = matmul(matmul(x.astype(dtype), a), b) * scale
    if "magnitude" not in adapter:
        return plain + branch
    params = module.variables["params"]
    norms = _column_norms(_combined(params["kernel"], jax.lax.stop_gradient(adapter), scale))
    factor = adapter["magnitude"] / jax.lax.stop_gradient(norms)
    without_bias = plain - params["bias"].astype(dtype) if module.use_bias else plain
    # the change alone is rounded to the compute dtype: bfloat16 has no numbers between 1 and 1.008
    return plain + (factor - 1).astype(dtype) * without_bias + factor.astype(dtype) * branch


def _combined(kernel: jax.Array, adapter: Adapter, scale: float) -> jax.Array:
    """Float32 [in, out]."""
    dense = kernel.reshape(kernel.shape[-2:]).astype(jnp.float32)
    return dense + scale * jnp.matmul(adapter["lora_a"], adapter["lora_b"], precision=jax.lax.Precision.HIGHEST)


def _column_norms(kernel: jax.Array) -> jax.Array:
    return jnp.linalg.norm(kernel, axis=0)


def _by_module(adapters: Any) -> dict[str, Adapter]:
    modules: dict[str, Adapter] = {}
    for path, leaf in flatten_dict(adapters).items():
        modules.setdefault("/".join(path[:-1]), {})[path[-1]] = leaf
    return modules
