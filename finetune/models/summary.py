"""A loaded backbone in words and numbers, for people who want to see what they got."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from finetune.data.image_spec import ImageSpec
from finetune.models.backbone import Backbone
from finetune.models.surgery import TransferReport


def summarize(backbone: Backbone) -> dict[str, Any]:
    """Plain JSON values: family, layout, leaves (path, shape, dtype, size), totals, image spec, transfer report."""
    leaves = [
        {"path": "/".join(path), "shape": list(leaf.shape), "dtype": str(leaf.dtype), "size": leaf.size}
        for path, leaf in sorted(flatten_dict(backbone.variables).items(), key=_in_order)
    ]
    totals = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in sorted(backbone.variables.items())
    }
    return {
        "family": backbone.family,
        "layout": backbone.layout,
        "num_features": backbone.num_features,
        "text_tower": backbone.text is not None,
        "image_spec": backbone.image_spec.to_json(),
        "totals": totals,
        "leaves": leaves,
        "transferred": [list(pair) for pair in backbone.report.transferred],
        "unused": list(backbone.report.unused),
        "resized": list(backbone.report.resized),
    }


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
