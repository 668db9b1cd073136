"""A loaded backbone in words and numbers, for people who want to see what they got."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from finetune.errors import ModelError, nearest
from finetune.images.spec import ImageSpec
from finetune.models.backbone import Backbone
from finetune.models.surgery import TransferReport


def summarize(backbone: Backbone) -> dict[str, Any]:
    """Plain JSON values: family, layout, leaves (path, shape, dtype, size), totals, image spec, transfer report."""
    return {
        "family": backbone.family,
        "layout": backbone.layout,
        "num_features": backbone.num_features,
        "text_tower": backbone.text is not None,
        "image_spec": backbone.image_spec.to_json(),
        **list_leaves(backbone.variables),
        "transferred": [list(pair) for pair in backbone.report.transferred],
        "unused": list(backbone.report.unused),
        "resized": list(backbone.report.resized),
    }


def list_leaves(variables: Any) -> dict[str, Any]:
    """``totals`` of values by collection, and ``leaves``: path, shape, dtype, size."""
    totals = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in sorted(variables.items())}
    leaves = [
        {"path": "/".join(path), "shape": list(leaf.shape), "dtype": str(leaf.dtype), "size": leaf.size}
        for path, leaf in sorted(flatten_dict(variables).items(), key=_in_order)
    ]
    return {"totals": totals, "leaves": leaves}


def find_values(variables: Any, path: str) -> list[dict[str, Any]]:
    """The leaves at a path or below it: path, shape, dtype, mean, std, min, max and values (nested lists).

    Args:
        path: names joined by ``/``, such as ``backbone/norm1/scale``; the collection (``params/...``) may be left out.

    Raises:
        ModelError: there is nothing; it names what is close.
    """
    leaves = {"/".join(key): leaf for key, leaf in sorted(flatten_dict(variables).items(), key=_in_order)}
    wanted = path.strip("/")
    found = [name for name in leaves if f"/{name}/".startswith((f"/{wanted}/", f"/{name.split('/')[0]}/{wanted}/"))]
    if not found:
        inner = [name.split("/", 1)[1] for name in leaves]
        raise ModelError(
            f"--param {path}: there is no such parameter{nearest(wanted, inner)}; without --param all are listed"
        )
    return [{"path": name, **_measured(np.asarray(leaves[name]))} for name in found]


def _measured(array: np.ndarray) -> dict[str, Any]:
    wide = array.astype(np.float64)
    numbers = {name: float(getattr(wide, name)()) for name in ("mean", "std", "min", "max")}
    return {"shape": list(array.shape), "dtype": str(array.dtype), **numbers, "values": array.tolist()}


def describe_images(spec: ImageSpec) -> str:
    """One line: what happens to an image before the model sees it."""
    if spec.resize is None:
        resize = "as they are"
    elif isinstance(spec.resize, tuple):
        resize = f"resized to {spec.resize[0]}x{spec.resize[1]} ({spec.interpolation})"
    else:
        resize = f"shorter edge resized to {spec.resize} ({spec.interpolation})"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (spec.mean, spec.std))
    return f"{resize}, centre {spec.height}x{spec.width}, scaled to [0, 1], minus ({mean}), divided by ({std})"


def describe_transfer(report: TransferReport) -> list[str]:
    """The transfer report with equal kinds of tensors counted rather than listed."""
    lines = [f"{len(report.transferred)} tensors transferred, {len(report.unused)} unused, none missing"]
    lines += [f"unused   {count} x {kind}" for kind, count in _kinds(report.unused)]
    return lines + [f"resized  {path}, to the positions of another image size" for path in report.resized]


def _in_order(item: tuple[tuple[str, ...], Any]) -> tuple[bool, list[tuple[int, str]]]:
    """Parameters first, and blocks_2 before blocks_10."""
    path = item[0]
    return path[0] != "params", [(int(n or 0), text) for text, n in re.findall(r"(\D+)(\d*)", "/".join(path) + "/")]


def _kinds(names: tuple[str, ...]) -> list[tuple[str, int]]:
    """Names that differ in numbers, or in all but their last part, are of one kind."""
    numberless = Counter(re.sub(r"\d+", "*", name) for name in names)
    last = Counter(name.rsplit(".", 1)[-1] for name in names)
    if len(numberless) <= 8:
        return sorted(numberless.items())
    return sorted((f"*.{name}", count) for name, count in last.items())
