"""Describes a loaded model: its leaves, their values, its images, and where its weights came from."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from finetune.errors import ModelError, nearest
from finetune.images.spec import ImageSpec
from finetune.models.backbone import Backbone
from finetune.models.surgery import TransferReport
from finetune.trees import count_values


def summarize(backbone: Backbone) -> dict[str, Any]:
    """A backbone as JSON values: family, layout, image spec, leaves, totals and transfer report."""
    return {
        "family": backbone.family,
        "layout": backbone.layout,
        "num_features": backbone.num_features,
        "text_tower": backbone.text is not None,
        "license": backbone.license,
        "classes": None if backbone.head is None else backbone.head.kernel.shape[1],
        "image_spec": backbone.image_spec.to_json(),
        **list_leaves(backbone.variables),
        "transferred": [list(pair) for pair in backbone.report.transferred],
        "unused": list(backbone.report.unused),
        "resized": list(backbone.report.resized),
    }


def list_leaves(variables: Any) -> dict[str, Any]:
    """``totals``: number of values in each collection; ``leaves``: path, shape, dtype and size of each."""
    totals = {name: count_values(tree) for name, tree in sorted(variables.items())}
    leaves = [
        {"path": "/".join(path), "shape": list(leaf.shape), "dtype": str(leaf.dtype), "size": leaf.size}
        for path, leaf in sorted(flatten_dict(variables).items(), key=_sort_key)
    ]
    return {"totals": totals, "leaves": leaves}


def find_values(variables: Any, path: str) -> list[dict[str, Any]]:
    """The leaves at a path or below it: path, shape, dtype, mean, std, min, max and values (nested lists).

    Args:
        path: such as ``backbone/norm1/scale``; the collection in front (``params/``) may be left out.

    Raises:
        ModelError: no leaf has that path; suggests the closest one.
    """
    leaves = {"/".join(key): leaf for key, leaf in sorted(flatten_dict(variables).items(), key=_sort_key)}
    prefix = path.strip("/")
    matches = [name for name in leaves if f"/{name}/".startswith((f"/{prefix}/", f"/{name.split('/')[0]}/{prefix}/"))]
    if not matches:
        without_collection = [name.split("/", 1)[1] for name in leaves]
        raise ModelError(
            f"--param {path}: there is no such parameter{nearest(prefix, without_collection)}; "
            "run without --param to list all of them"
        )
    return [{"path": name, **_describe_values(np.asarray(leaves[name]))} for name in matches]


def _describe_values(array: np.ndarray) -> dict[str, Any]:
    exact = array.astype(np.float64)
    statistics = {name: float(getattr(exact, name)()) for name in ("mean", "std", "min", "max")}
    return {"shape": list(array.shape), "dtype": str(array.dtype), **statistics, "values": array.tolist()}


def describe_images(spec: ImageSpec) -> str:
    """How an image is prepared, in one line."""
    if spec.resize is None:
        resize = "not resized"
    elif isinstance(spec.resize, tuple):
        resize = f"resized to {spec.resize[0]}x{spec.resize[1]} ({spec.interpolation})"
    else:
        resize = f"shorter edge resized to {spec.resize} ({spec.interpolation})"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (spec.mean, spec.std))
    return f"{resize}, centre {spec.height}x{spec.width}, scaled to [0, 1], mean ({mean}), std ({std})"


def describe_transfer(report: TransferReport) -> list[str]:
    """The transfer report, line by line; unused tensors with similar names are counted together."""
    lines = [f"{len(report.transferred)} tensors transferred, {len(report.unused)} unused, none missing"]
    lines += [f"unused   {count} x {pattern}" for pattern, count in _count_by_pattern(report.unused)]
    lines += [f"resized  {path}, interpolated to another image size" for path in report.resized]
    return lines + [f"note     {line}" for line in report.notes]


def _sort_key(item: tuple[tuple[str, ...], Any]) -> tuple[bool, list[tuple[int, str]]]:
    """Sorts params first, and blocks_2 before blocks_10."""
    path = item[0]
    return path[0] != "params", [(int(n or 0), text) for text, n in re.findall(r"(\D+)(\d*)", "/".join(path) + "/")]


def _count_by_pattern(names: tuple[str, ...]) -> list[tuple[str, int]]:
    """Counts names that differ only in numbers; where that leaves many, names with the same last part."""
    numberless = Counter(re.sub(r"\d+", "*", name) for name in names)
    last = Counter(name.rsplit(".", 1)[-1] for name in names)
    if len(numberless) <= 8:
        return sorted(numberless.items())
    return sorted((f"*.{name}", count) for name, count in last.items())
