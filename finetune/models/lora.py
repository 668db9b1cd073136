"""Low-rank adapters on dense kernels of any Linen module: LoRA and DoRA.

LoRA (Hu et al. 2021, arXiv:2106.09685) learns ``kernel + scale * lora_a @ lora_b`` with the kernel fixed; DoRA (Liu et
al. 2024, arXiv:2402.09353) learns the length of each of its columns as well. A tree of adapters has ``lora_a``
[in, rank], ``lora_b`` [rank, out] and, for DoRA, ``magnitude`` [out] where the parameters have ``kernel`` [in, out].
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from finetune.errors import PartitionError

Adapter = dict[str, jax.Array]


def init_adapters(kernels: Any, *, rank: int, dora: bool, rng: jax.Array) -> dict[str, Any]:
    """Fresh adapters, which change nothing yet: ``lora_a`` is uniform within 1 / sqrt(in), ``lora_b`` is zero.

    Args:
        kernels: tree whose leaves are dense kernels [in, out].
        rng: each kernel's key is folded from its path, so that it does not depend on what else is adapted.

    Raises:
        PartitionError: a leaf that is no dense kernel, or one too small for the rank.
    """
    adapters: dict[tuple[str, ...], jax.Array] = {}
    for path, kernel in flatten_dict(kernels).items():
        name = "/".join(path)
        if path[-1] != "kernel" or kernel.ndim != 2:
            raise PartitionError(
                f"lora: {name} {tuple(kernel.shape)} is not a dense kernel; match "
                "kernels alone, such as '.*_proj/kernel'"
            )
        if rank > min(kernel.shape):
            raise PartitionError(f"lora: rank {rank} is more than {name} {tuple(kernel.shape)} can have")
        width, out = kernel.shape
        key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
        bound = width**-0.5
        adapters[*path[:-1], "lora_a"] = jax.random.uniform(key, (width, rank), jnp.float32, -bound, bound)
        adapters[*path[:-1], "lora_b"] = jnp.zeros((rank, out), jnp.float32)
        if dora:
            adapters[*path[:-1], "magnitude"] = _column_norms(jnp.asarray(kernel, jnp.float32))
    return unflatten_dict(adapters)


def merge_adapters(params: Any, adapters: Any, scales: Mapping[str, float]) -> dict[str, Any]:
    """``params`` with the adapters folded into their kernels; all other leaves are shared.

    Args:
        scales: path of a module, joined by ``/`` -> alpha / rank.
    """
    flat = flatten_dict(params)
    for module, adapter in _by_module(adapters).items():
        key = (*module.split("/"), "kernel")
        kernel = _combined(jnp.asarray(flat[key], jnp.float32), adapter, scales[module])
        if "magnitude" in adapter:
            kernel = kernel * (adapter["magnitude"] / _column_norms(kernel))
        flat[key] = kernel.astype(flat[key].dtype)
    return unflatten_dict(flat)


@contextmanager
def adapted(adapters: Any, scales: Mapping[str, float]) -> Iterator[None]:
    """Within it, each ``nn.Dense`` that has an adapter computes with it.

    The adapter is a branch of its own, x @ lora_a @ lora_b: the gradient of the kernel is never formed. DoRA's column
    norms count as constants, as in its section 4.3.

    Raises:
        PartitionError: adapters of modules that the model did not call as dense layers.
    """
    modules, used = _by_module(adapters), set()

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, path = context.module, "/".join(context.module.path)
        plain = call(*args, **kwargs)
        if context.method_name != "__call__" or path not in modules or not isinstance(module, nn.Dense):
            return plain
        used.add(path)
        return _adapt(module, args[0], plain, modules[path], scales[path])

    with nn.intercept_methods(intercept):
        yield
    if unused := sorted(modules.keys() - used):
        raise PartitionError(f"lora: {', '.join(unused[:3])}: no dense layer of the model is called by that name")


def _adapt(module: nn.Dense, x: jax.Array, plain: jax.Array, adapter: Adapter, scale: float) -> jax.Array:
    dtype = plain.dtype
    a, b = adapter["lora_a"].astype(dtype), adapter["lora_b"].astype(dtype)
    branch = (x.astype(dtype) @ a @ b) * scale
    if "magnitude" not in adapter:
        return plain + branch
    params = module.variables["params"]
    norms = _column_norms(_combined(params["kernel"].astype(jnp.float32), adapter, scale))
    factor = (adapter["magnitude"] / jax.lax.stop_gradient(norms)).astype(dtype)
    bias = params["bias"].astype(dtype) if module.use_bias else jnp.zeros((), dtype)
    return (plain - bias + branch) * factor + bias


def _combined(kernel: jax.Array, adapter: Adapter, scale: float) -> jax.Array:
    return kernel + scale * jnp.matmul(adapter["lora_a"], adapter["lora_b"], precision=jax.lax.Precision.HIGHEST)


def _column_norms(kernel: jax.Array) -> jax.Array:
    return jnp.linalg.norm(kernel, axis=0)


def _by_module(adapters: Any) -> dict[str, Adapter]:
    modules: dict[str, Adapter] = {}
    for path, leaf in flatten_dict(adapters).items():
        modules.setdefault("/".join(path[:-1]), {})[path[-1]] = leaf
    return modules
