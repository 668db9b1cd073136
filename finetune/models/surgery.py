"""Extracting submodules, and transferring variables from one tree to another with every leaf accounted for."""

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
from finetune.page.facts import ShownByFacts

Variables = Mapping[str, Any]  # a dict, or the FrozenDict of older Flax code
Key = tuple[str, ...]
_SHOWN = 8  # problems of each kind in a message


def extract_submodule(module: nn.Module, variables: Variables, path: str) -> tuple[nn.Module, dict[str, Any]]:
    """A submodule and its variables, by Linen's ``bind`` and ``unbind``.

    Follows Flax's guide on transfer learning. Works for any Linen module that defines its submodules in ``setup()``.

    Args:
        module: for example ``CLIPModule``, or the ``.module`` of transformers' ``FlaxCLIPModel``.
        variables: ``{"params": ..., ...}``; the result has every collection of the submodule.
        path: attribute names separated by dots, such as ``vision_model.encoder``; a number indexes a list
            (``stages.0``).

    Returns:
        The unbound submodule, and its variables, whose leaves are shared rather than copied.

    Raises:
        ModelError: there is no such submodule; lists those that exist.
    """
    current: Any = module.bind(_to_dict(variables))
    for i, name in enumerate(path.split(".")):
        child = _child(current, name)
        if child is None:
            parent = ".".join(path.split(".")[:i]) or type(module).__name__
            children = _child_names(current)
            raise ModelError(
                f"{parent} has no submodule {name!r}{nearest(name, children)}; it has: {', '.join(children) or 'none'}"
                " (submodules created in an @nn.compact method cannot be extracted)"
            )
        current = child
    if not isinstance(current, nn.Module):
        raise ModelError(f"{path}: a list of {len(current)} submodules; choose one of them, such as {path}.0")
    submodule, subvariables = current.unbind()
    return submodule, _to_dict(subvariables)


def _child(parent: Any, name: str) -> Any:
    """The submodule or list of submodules of that name, or the item of a list; None where there is none."""
    if isinstance(parent, list | tuple):
        return parent[int(name)] if name.isdigit() and int(name) < len(parent) else None
    child = getattr(parent, name, None)
    modules = child if isinstance(child, list | tuple) and child else [child]
    return child if all(isinstance(module, nn.Module) for module in modules) else None


def _child_names(parent: Any) -> list[str]:
    if isinstance(parent, list | tuple):
        return [str(i) for i in range(len(parent))]
    # getattr has run setup(), so the submodules that it defines are attributes by now
    return sorted(name for name in vars(parent) if name != "parent" and _child(parent, name) is not None)


@dataclass(frozen=True, repr=False)
class TransferReport(ShownByFacts):
    """Where every source tensor went, and where every target leaf came from; names are ``collection/path``.

    Attributes:
        transferred: (source, target) names of the copied leaves.
        fresh: target leaves that keep their initial values, such as those of a new head.
        unused: source tensors that were left out on purpose.
        resized: target leaves (positions) that were interpolated to another image size.
        notes: lines about how the source was read.
    """

    transferred: tuple[tuple[str, str], ...]
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def _facts(self) -> dict[str, Any]:
        return {name: len(getattr(self, name)) for name in ("transferred", "fresh", "unused", "resized")}

    def __str__(self) -> str:
        lines = [f"{len(self.transferred)} tensors transferred, {len(self.fresh)} fresh, {len(self.unused)} unused"]
        lines += [f"  fresh   {name}" for name in self.fresh]
        lines += [f"  unused  {name}" for name in self.unused]
        lines += [f"  resized {name}" for name in self.resized]
        lines += [f"  note    {line}" for line in self.notes]
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
    """Copies every leaf of every collection of ``source`` to the leaf of the same path in ``target``.

    Args:
        source: ``{"params": ..., "batch_stats": ..., ...}``.
        target: the same collections, as arrays or as shapes (``jax.eval_shape`` of ``init``); leaves that are only
            shapes cannot stay fresh.
        into: path inside each target collection that the source's paths are relative to, such as ``backbone``.
        fresh: regular expressions that match all of a target name (``params/head/.*``); these need no source.
        unused: regular expressions that match all of a source name; these need no target.
        names: names of source leaves to report instead of their paths.

    Returns:
        The target's tree with the source's values in the target's dtypes, and the report.

    Raises:
        TransferError: leaves are missing, unexpected or of another shape; lists the first of each kind.
    """
    targets = flatten_dict(_to_dict(target))
    sources = {_prefixed(key, into): (key, value) for key, value in flatten_dict(_to_dict(source)).items()}
    reported = {key: (names or {}).get(path, "/".join(path)) for key, (path, _) in sources.items()}
    problems: dict[str, list[str]] = {"shape": [], "missing": [], "unexpected": []}
    transferred, kept, left_out = [], [], []
    result: dict[Key, Any] = {}
    for key, leaf in targets.items():
        path = "/".join(key)
        if key in sources:
            value = sources[key][1]
            if tuple(value.shape) != tuple(leaf.shape):
                problems["shape"].append(f"{reported[key]}: {tuple(value.shape)} given, {tuple(leaf.shape)} needed")
                continue
            # another dtype is made on the host: on the device it would be a program for each shape
            on_device = isinstance(value, jax.Array)
            result[key] = jnp.asarray(value if on_device else np.asarray(value, leaf.dtype), leaf.dtype)
            transferred.append((reported[key], path))
        elif _any_match(fresh, path) and not isinstance(leaf, jax.ShapeDtypeStruct):
            result[key] = leaf
            kept.append(path)
        else:
            problems["missing"].append(f"{path} {tuple(leaf.shape)}")
    for key in sources.keys() - targets.keys():
        if _any_match(unused, "/".join(sources[key][0])):
            left_out.append(reported[key])
        else:
            problems["unexpected"].append(f"{reported[key]} {tuple(sources[key][1].shape)}")
    if any(problems.values()):
        raise TransferError(f"the weights do not fit the model: {_likely_cause(problems, len(transferred))}")
    return unflatten_dict(result), TransferReport(tuple(transferred), tuple(kept), tuple(sorted(left_out)))


def _likely_cause(problems: Mapping[str, list[str]], fitting: int) -> str:
    """What is probably wrong, and the first problems of each kind."""
    shapes, missing, unexpected = (sorted(set(problems[kind])) for kind in ("shape", "missing", "unexpected"))
    if not fitting and missing and unexpected:
        cause = "no name fits, as if a program had put a prefix before them, or these were weights of another model"
    elif shapes and not missing and not unexpected:
        cause = "all names fit, and sizes do not: the configuration is of another size of the model"
    elif missing and not unexpected:
        cause = "some are missing: the file is not complete, or holds only a part of the model"
    else:
        cause = "the configuration is of another model, or of another version of it"
    lines = [f"{cause}:"]
    for kind, names in (("shape", shapes), ("missing", missing), ("unexpected", unexpected)):
        lines += [f"  {kind:<11} {name}" for name in names[:_SHOWN]]
        lines += [f"  {kind:<11} and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return "\n".join(lines)


def _to_dict(tree: Variables) -> dict[str, Any]:
    return unfreeze(tree) if isinstance(tree, FrozenDict) else dict(tree)


def _prefixed(key: Key, into: str) -> Key:
    return (key[0], *(name for name in into.split("/") if name), *key[1:])


def _any_match(patterns: Iterable[str], path: str) -> bool:
    return any(re.fullmatch(pattern, path) for pattern in patterns)
