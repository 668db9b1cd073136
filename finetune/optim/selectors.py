"""Which parameters a rule means: named selectors, and regular expressions for whole paths."""

from __future__ import annotations

import re
from collections.abc import Collection

from finetune.errors import PartitionError

SELECTORS = ("head", "backbone", "norms", "biases", "embeddings", "blocks[i]", "blocks[a:b]")
_BLOCKS = re.compile(r"blocks\[(-?\d+|(-?\d*):(-?\d*))\]")
_BACKBONE = "backbone/"


def select(match: str, paths: Collection[str]) -> set[str]:
    """The paths that a rule matches.

    Args:
        match: a name of ``SELECTORS``, or a regular expression for the whole path.
        paths: all parameters of a classifier, names joined by ``/``. A norm is a module with a ``scale``; blocks are
            the backbone's, counted from its input.

    Raises:
        PartitionError: not a regular expression, blocks that are not there, or a backbone without known blocks.
    """
    if match in ("head", "backbone"):
        return {path for path in paths if path.startswith(f"{match}/")}
    if match == "norms":
        modules = {_module(path) for path in paths if _leaf(path) == "scale"}
        return {path for path in paths if _module(path) in modules}
    if match == "biases":
        return {path for path in paths if _leaf(path) == "bias"}
    if match == "embeddings":
        return {path for path in paths if is_embedding(path)}
    if blocks := _BLOCKS.fullmatch(match):
        return _blocks(blocks, paths)
    try:
        pattern = re.compile(match)
    except re.error as error:
        raise PartitionError(f"partitions: {match!r} is not a regular expression: {error}") from None
    return {path for path in paths if pattern.fullmatch(path)}


def is_embedding(path: str) -> bool:
    """Learned tokens and positions; a patch embedding's kernel and bias are not among them."""
    return _leaf(path).endswith("embedding")


def depths(paths: Collection[str]) -> dict[str, int]:
    """Depth of every leaf in its backbone's own order: 0 below the blocks, 1 ... L in them, L + 1 above, where the head
    is too."""
    from finetune.models.backbone import depth_of  # imports every family

    inner = depth_of([path.removeprefix(_BACKBONE) for path in paths if path.startswith(_BACKBONE)])
    top = max(inner.values())
    return {path: inner[path.removeprefix(_BACKBONE)] if path.startswith(_BACKBONE) else top for path in paths}


def _blocks(match: re.Match[str], paths: Collection[str]) -> set[str]:
    depth = depths(paths)
    count = max(depth.values()) - 1
    index, start, stop = match.groups()
    chosen = list(range(1, count + 1))
    try:
        wanted = chosen[_number(start) : _number(stop)] if ":" in index else [chosen[int(index)]]
    except IndexError:
        raise PartitionError(f"partitions: {match.group()!r}: the backbone has {count} blocks") from None
    return {path for path in paths if depth[path] in wanted}


def _number(text: str) -> int | None:
    return int(text) if text else None


def _leaf(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _module(path: str) -> str:
    return path.rsplit("/", 1)[0]
