"""Which parameters a rule means: named selectors, and regular expressions for whole paths."""

from __future__ import annotations

import re
from collections.abc import Collection

from finetune.errors import PartitionError
from finetune.models.depth import DepthOrder
from finetune.recipe.patterns import BLOCKS, matching
from finetune.trees import module_of

SELECTORS = ("head", "backbone", "norms", "biases", "embeddings", "blocks[i]", "blocks[a:b]")
_BACKBONE = "backbone/"


def select(match: str, paths: Collection[str], depth_order: DepthOrder | None = None) -> set[str]:
    """The paths that a rule matches.

    Args:
        match: a name of ``SELECTORS``, or a regular expression for the whole path.
        paths: all parameters of a classifier, names joined by ``/``. A norm is a module with a ``scale``; blocks are
            the backbone's, counted from its input.
        depth_order: the backbone's; ``blocks`` needs it.

    Raises:
        PartitionError: an invalid or slow regular expression, blocks that do not exist, or a backbone without a depth
            order.
    """
    if match in ("head", "backbone"):
        return {path for path in paths if path.startswith(f"{match}/")}
    if match == "norms":
        modules = {module_of(path) for path in paths if _leaf(path) == "scale"}
        return {path for path in paths if module_of(path) in modules}
    if match == "biases":
        return {path for path in paths if _leaf(path) == "bias"}
    if match == "embeddings":
        return {path for path in paths if is_embedding(path)}
    if blocks := BLOCKS.fullmatch(match):
        return _blocks(blocks, paths, depth_order)
    try:
        return matching(match, paths)
    except ValueError as error:
        raise PartitionError(f"partitions: {match!r} is {error}") from None


def needs_depth(match: str) -> bool:
    """Whether a rule counts blocks."""
    return BLOCKS.fullmatch(match) is not None


def is_embedding(path: str) -> bool:
    """Learned tokens and positions; a patch embedding's kernel and bias are not among them."""
    return _leaf(path).endswith("embedding")


def is_bias_or_scale(path: str) -> bool:
    """Biases and scales, which have several axes where attention has one for each head."""
    return _leaf(path) in ("bias", "scale") or _leaf(path).endswith("_scale")


def classifier_depths(paths: Collection[str], depth_order: DepthOrder | None) -> dict[str, int]:
    """Depth of each parameter of a classifier: 0 in the backbone's stem, 1 ... L in its blocks, L + 1 above them, where
    the head is too.

    Raises:
        PartitionError: the backbone declares no order.
        ModelError: a parameter that its order does not know.
    """
    if depth_order is None:
        raise PartitionError(
            "partitions: the order of this backbone's blocks is not known: match its parts by regular expressions, "
            "without blocks[...] and layer_decay, or declare depth_order on the module's class"
        )
    inner = [path.removeprefix(_BACKBONE) for path in paths if path.startswith(_BACKBONE)]
    depths, top = depth_order.depths(inner), depth_order.num_blocks(inner) + 1
    return {path: depths[path.removeprefix(_BACKBONE)] if path.startswith(_BACKBONE) else top for path in paths}


def _blocks(match: re.Match[str], paths: Collection[str], depth_order: DepthOrder | None) -> set[str]:
    depths = classifier_depths(paths, depth_order)
    count = max(depths.values()) - 1
    index, start, stop = match.groups()
    blocks = list(range(1, count + 1))
    ends = [_number(end) for end in ((start, stop) if ":" in index else (index,))]
    last = count if ":" in index else count - 1
    chosen = blocks[ends[0] : ends[1]] if ":" in index else blocks[ends[0] or 0 :][:1]
    if not chosen or any(end is not None and not -count <= end <= last for end in ends):
        raise PartitionError(f"partitions: {match.group()!r}: the backbone has {count} blocks")
    return {path for path in paths if depths[path] in chosen}


def _number(text: str) -> int | None:
    return int(text) if text else None


def _leaf(path: str) -> str:
    return path.rpartition("/")[2]
