"""Taking modules out of modules, and moving variables from tree to tree with nothing left unaccounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict, unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from finetune.errors import ModelError, TransferError, nearest
from finetune.weights.tensors import LazyArray

Variables = Mapping[str, Any]  # a dict, or the FrozenDict of older Flax code
Key = tuple[str, ...]


def extract_submodule(module: nn.Module, variables: Variables, path: str) -> tuple[nn.Module, dict[str, Any]]:
    """A submodule and its part of the variables, by Linen's ``bind`` and ``unbind``.

    Follows Flax's guide on transfer learning. Works for any Linen module that defines its parts in ``setup()``.

    Args:
        module: for example ``CLIPModule``, or the ``.module`` of transformers' ``FlaxCLIPModel``.
        variables: ``{"params": ..., ...}``; every collection of the submodule comes along.
        path: attribute names with dots, such as ``vision_model.encoder``; a number picks from a list (``stages.0``).

    Raises:
        ModelError: a part of the path is not a submodule; lists those that are.
    """
    part: Any = module.bind(_plain(variables))
    for i, name in enumerate(path.split(".")):
        child = _member(part, name)
        if child is None:
            at = ".".join(path.split(".")[:i]) or type(module).__name__
            children = _members(part)
            raise ModelError(
                f"{at} has no submodule {name!r}{nearest(name, children)}; it has: {', '.join(children) or 'none'}"
                " (modules made inside an @nn.compact method cannot be taken out)"
            )
        part = child
    if not isinstance(part, nn.Module):
        raise ModelError(f"{path}: a list of {len(part)} submodules; name one of them, such as {path}.0")
    submodule, subvariables = part.unbind()
    return submodule, _plain(subvariables)


def _member(part: Any, name: str) -> Any:
    """A submodule, a list of submodules or one of a list; None where there is no such thing."""
    if isinstance(part, list | tuple):
        return part[int(name)] if name.isdigit() and int(name) < len(part) else None
    child = getattr(part, name, None)
    modules = child if isinstance(child, list | tuple) and child else [child]
    return child if all(isinstance(module, nn.Module) for module in modules) else None


def _members(part: Any) -> list[str]:
    if isinstance(part, list | tuple):
        return [str(i) for i in range(len(part))]
    # getattr has run setup(), so the parts that it made are attributes now
    return sorted(name for name in vars(part) if name != "parent" and _member(part, name) is not None)


@dataclass(frozen=True)
class TransferReport:
    """What became of every source tensor and of every target leaf; names are ``collection/path``.

    Attributes:
        transferred: (source, target) names of what was copied.
        fresh: target leaves that keep their new initial values, such as a head's.
        unused: source tensors that were left out on purpose.
        resized: target leaves, positions, that were interpolated to another image size.
    """

    transferred: tuple[tuple[str, str], ...]
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.transferred)} tensors transferred, {len(self.fresh)} fresh, {len(self.unused)} unused"]
        lines += [f"  fresh   {name}" for name in self.fresh]
        lines += [f"  unused  {name}" for name in self.unused]
        lines += [f"  resized {name}" for name in self.resized]
        return "\n".join(lines)


def transplant(
    source: Variables,
    target: Variables,
    *,
    into: str = "",
    fresh: Iterable[str] = (),
    unused: Iterable[str] = (),
    names: Mapping[Key, str] | None = None,
) -> tuple[dict[str, Any], TransferReport]:
    """Copies every leaf of every collection of ``source`` to its place in ``target``.

    Args:
        source: ``{"params": ..., "batch_stats": ..., ...}``.
        target: the same collections, as arrays or as shapes (``jax.eval_shape`` of ``init``); leaves that are only
            shapes cannot stay fresh.
        into: where source trees go inside each target collection, such as ``backbone``.
        fresh: regular expressions of whole target names (``params/head/.*``) that may have no source.
        unused: regular expressions of whole source names that may have no target.
        names: source names to show for source leaves in place of their paths.

    Returns:
        The target's tree with the source's values in the target's dtypes, and the report.

    Raises:
        TransferError: listing together all leaves that are missing, unexpected or of another shape.
    """
    goal = flatten_dict(_plain(target))
    given = {_placed(key, into): (key, value) for key, value in flatten_dict(_plain(source)).items()}
    shown = {key: (names or {}).get(origin, "/".join(origin)) for key, (origin, _) in given.items()}
    problems, transferred, kept, left = [], [], [], []
    result: dict[Key, Any] = {}
    for key, wanted in goal.items():
        path = "/".join(key)
        if key in given:
            value = given[key][1]
            if tuple(value.shape) != tuple(wanted.shape):
                problems.append(f"shape       {shown[key]}: {tuple(value.shape)} given, {tuple(wanted.shape)} needed")
                continue
            result[key] = jnp.asarray(np.asarray(value) if isinstance(value, LazyArray) else value, wanted.dtype)
            transferred.append((shown[key], path))
        elif _any_match(fresh, path) and not isinstance(wanted, jax.ShapeDtypeStruct):
            result[key] = wanted
            kept.append(path)
        else:
            problems.append(f"missing     {path} {tuple(wanted.shape)}")
    for key in given.keys() - goal.keys():
        if _any_match(unused, "/".join(given[key][0])):
            left.append(shown[key])
        else:
            problems.append(f"unexpected  {shown[key]} {tuple(given[key][1].shape)}")
    if problems:
        raise TransferError(
            "weights and model do not fit:\n" + "\n".join(f"  {line}" for line in sorted(set(problems)))
        )
    return unflatten_dict(result), TransferReport(tuple(transferred), tuple(kept), tuple(sorted(left)))


def _plain(tree: Variables) -> dict[str, Any]:
    return unfreeze(tree) if isinstance(tree, FrozenDict) else dict(tree)


def _placed(key: Key, into: str) -> Key:
    return (key[0], *(part for part in into.split("/") if part), *key[1:])


def _any_match(patterns: Iterable[str], path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)
