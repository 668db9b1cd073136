"""Where arrays are: which devices hold which part of parameters and of batches.

A parameter is cut along ``tensor`` where it is a kernel of an attention or an MLP, so that one product needs no
communication (Shoeybi et al. 2019, arXiv:1909.08053, section 3); along ``fsdp`` on its largest axis that divides, if it
has ``SMALLEST`` values or more (Rajbhandari et al. 2019, arXiv:1910.02054); and along ``data`` never. What follows a
parameter, such as its moments and its average, is cut as it is. XLA finds the rest of the program.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from finetune.distributed.mesh import make_mesh, shards_of_batch
from finetune.errors import MeshError
from finetune.recipe.mesh import Axis
from finetune.recipe.patterns import matching
from finetune.trees import fetch, flatten

SMALLEST = 1024  # values of a leaf that is cut along fsdp; all smaller ones are in every device
_COLUMNS = re.compile(r"(^|.*/)(q_proj|k_proj|v_proj|fc1|gate)/(kernel|bias)")  # outputs are divided
_ROWS = re.compile(r"(^|.*/)(out_proj|fc2)/kernel")  # inputs are divided
_OUTER = re.compile(r"(params|anchor|average|kernels)/")  # that a parameter's path may stand behind


class Placement:
    """The places of a run's arrays on a mesh.

    On a mesh of one device arrays are left where JAX puts them.

    Attributes:
        mesh: with the axes data, fsdp and tensor.
        batch_shards: the parts that a batch is divided into.
    """

    def __init__(self, mesh: Mesh, rules: Mapping[str, Sequence[Axis | None]] | None = None) -> None:
        """
        Args:
            rules: regular expression for whole parameter paths -> axis of the mesh along each axis of the parameter.
        """
        self.mesh, self._rules = mesh, dict(rules or {})
        self.batch_shards = shards_of_batch(mesh)

    @property
    def is_trivial(self) -> bool:
        """There is nothing to divide."""
        return bool(self.mesh.size == 1)

    @cached_property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def batch(self) -> NamedSharding:
        """Of an array whose first axis is the batch."""
        return NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))

    @cached_property
    def microbatches(self) -> NamedSharding:
        """Of an array whose second axis is the batch."""
        return NamedSharding(self.mesh, PartitionSpec(None, ("data", "fsdp")))

    @cached_property
    def _several_processes(self) -> bool:
        return len({device.process_index for device in self.mesh.devices.flat}) > 1

    def shardings(self, tree: Any) -> Any:
        """The sharding of each leaf, by its path: the names of the dicts that it is in.

        Args:
            tree: of arrays or shapes: parameters, variables, a train state, what an optimizer keeps.

        Raises:
            MeshError: a rule that does not fit a leaf.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
        paths = [_path(keys) for keys, _ in leaves]
        chosen = self._matches(paths)
        specs = [
            self._spec(path, np.shape(leaf), chosen.get(path)) for path, (_, leaf) in zip(paths, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, [NamedSharding(self.mesh, spec) for spec in specs])

    def shapes(self, tree: Any) -> Any:
        """The tree as shapes with these shardings, to compile for."""
        if self.is_trivial:
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=place),
            tree,
            self.shardings(tree),
        )

    def batch_shapes(self, tree: Any) -> Any:
        """The shapes of a batch, with its shardings."""
        if self.is_trivial:
            return tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.batch), tree)

    def put(self, tree: Any) -> Any:
        """The tree on the mesh. With several processes, each has the same one."""
        if self.is_trivial:
            return jax.device_put(tree)
        return jax.tree.map(self.put_as, tree, self.shardings(tree))

    def put_whole(self, tree: Any) -> Any:
        """The tree, all of it on every device."""
        if self.is_trivial:
            return jax.device_put(tree)
        return jax.tree.map(lambda leaf: self.put_as(leaf, self.replicated), tree)

    def put_as(self, leaf: Any, place: NamedSharding) -> jax.Array:
        """An array that every process has all of, in a place of its own."""
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == place.device_set:
            return jax.device_put(leaf, place)
        if not self._several_processes:
            return jax.device_put(leaf, place)
        array = fetch(leaf)
        return jax.make_array_from_callback(array.shape, place, lambda index: array[index])

    def put_batch(self, batch: Any) -> Any:
        """A batch, its first axis divided among the devices.

        Args:
            batch: arrays; with several processes, the :meth:`rows` of this one.
        """
        if self.is_trivial:
            return jax.device_put(batch)
        if not self._several_processes:
            return jax.device_put(batch, self.batch)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self.batch, np.asarray(leaf)), batch)

    def rows(self, size: int) -> np.ndarray | None:
        """The rows of a batch of so many that this process has to bring, ascending; None for all of them.

        Args:
            size: a multiple of ``batch_shards``.
        """
        if not self._several_processes:
            return None
        places = self.batch.addressable_devices_indices_map((size,))
        parts = {index[0].indices(size)[:2] for index in places.values() if index is not None}
        return np.concatenate([np.arange(*part) for part in sorted(parts)])

    def round_up(self, size: int) -> int:
        """The next size of a batch that can be divided."""
        return -(-size // self.batch_shards) * self.batch_shards

    def jit(self, step: Callable[..., Any]) -> Any:
        """The step compiled, with all of its results on every device."""
        return jax.jit(step) if self.is_trivial else jax.jit(step, out_shardings=self.replicated)

    def check_batch(self, name: str, size: int, parts: int = 1) -> None:
        """
        Args:
            name: of the option, for the message.
            parts: that the batch is computed in, one after another.

        Raises:
            MeshError: a batch that does not divide among the devices.
        """
        if size % (self.batch_shards * parts) == 0:
            return
        step = self.batch_shards * parts
        among = f"{self.batch_shards} devices" + (f" in {parts} parts (grad_accum_steps)" if parts > 1 else "")
        near = sorted({max(1, size // step) * step, -(-size // step) * step})
        raise MeshError(
            f"{name}: {size} does not divide among {among}; choose {' or '.join(map(str, near))}, or another mesh"
        )

    def check_rules(self, params: Any) -> None:
        """
        Raises:
            MeshError: a rule that matches no parameter, or one of other axes.
        """
        leaves = {path: np.shape(leaf) for path, leaf in flatten(params).items()}
        taken = self._matches(list(leaves))
        for pattern, axes in self._rules.items():
            paths = [path for path, rule in taken.items() if rule is axes]
            if not paths:
                raise MeshError(f"mesh.rules: {pattern!r} takes no parameter; paths look like {next(iter(leaves))}")
            for path in paths:
                if len(leaves[path]) != len(axes):
                    raise MeshError(
                        f"mesh.rules: {pattern!r} has {len(axes)} axes, and {path} has {len(leaves[path])}: "
                        f"{leaves[path]}; give one for each, null where it is not divided"
                    )
                self._check_rule(path, leaves[path], axes)

    def _matches(self, paths: Sequence[str]) -> dict[str, Sequence[Axis | None]]:
        """path -> the axes that a rule gives it."""
        inner = {path: _OUTER.sub("", path, count=1) for path in paths}
        chosen: dict[str, Sequence[Axis | None]] = {}
        for pattern, axes in self._rules.items():
            matched = matching(pattern, set(inner.values()))
            for path, name in inner.items():
                if name in matched:
                    chosen.setdefault(path, axes)
        return chosen

    def _spec(self, path: str, shape: tuple[int, ...], rule: Sequence[Axis | None] | None) -> PartitionSpec:
        if rule is not None and len(rule) == len(shape):
            self._check_rule(path, shape, rule)
            return PartitionSpec(*rule)
        axes: list[Axis | None] = [None] * len(shape)
        divided = _tensor_axis(path, shape)
        tensor, fsdp = self.mesh.shape["tensor"], self.mesh.shape["fsdp"]
        if tensor > 1 and divided is not None and shape[divided] % tensor == 0:
            axes[divided] = "tensor"
        if fsdp > 1 and math.prod(shape) >= SMALLEST:
            free = [i for i, size in enumerate(shape) if axes[i] is None and size % fsdp == 0]
            if free:
                axes[max(free, key=lambda i: shape[i])] = "fsdp"
        return PartitionSpec(*axes)

    def _check_rule(self, path: str, shape: tuple[int, ...], rule: Sequence[Axis | None]) -> None:
        for size, axis in zip(shape, rule, strict=True):
            if axis is not None and size % self.mesh.shape[axis]:
                raise MeshError(
                    f"mesh.rules: {path} of shape {shape} does not divide along {axis} among "
                    f"{self.mesh.shape[axis]} devices; give that axis null"
                )


def on_one_device() -> Placement:
    """Everything is on this process's first device."""
    return Placement(make_mesh(devices=jax.local_devices()[:1]))


def on_all_devices() -> Placement:
    """Batches are divided among all devices of this process, and each has all variables."""
    return Placement(make_mesh(devices=jax.local_devices()))


def _tensor_axis(path: str, shape: tuple[int, ...]) -> int | None:
    """The axis of a layer's parameter that is divided along ``tensor``."""
    if _COLUMNS.fullmatch(path):
        return len(shape) - 1
    return 0 if _ROWS.fullmatch(path) and len(shape) == 2 else None


def _path(keys: Sequence[Any]) -> str:
    """The names of the dicts around a leaf, from the innermost that are in nothing else."""
    names: list[str] = []
    for key in reversed(keys):
        if not isinstance(key, jax.tree_util.DictKey):
            break
        names.append(str(key.key))
    return "/".join(reversed(names))
