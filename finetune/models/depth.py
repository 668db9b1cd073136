"""The order of a backbone's parameters from its input to its output."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from finetune.errors import ModelError


@dataclass(frozen=True)
class DepthOrder:
    """How a backbone's blocks follow each other: regular expressions for whole parameter paths.

    A module class declares its own as ``depth_order: ClassVar[DepthOrder]``.

    Attributes:
        stem: what comes before the blocks.
        blocks: the blocks; the numbers by which they follow each other are groups, and an absent group counts as 0.
        top: what comes after them.
    """

    stem: str
    blocks: str
    top: str = "(?!)"  # nothing

    def key(self, path: str) -> tuple[int, ...] | None:
        """What the leaf is sorted by; None where the order does not know it."""
        if re.fullmatch(self.stem, path):
            return (0,)
        if block := re.fullmatch(self.blocks, path):
            return 1, *(int(number or 0) for number in block.groups())
        return (2,) if re.fullmatch(self.top, path) else None

    def layer(self, path: str) -> str | None:
        """The path of the block that a leaf is in, such as ``encoder/layers/3``; None where it is in none."""
        block = re.fullmatch(self.blocks, path)
        if block is None or block.lastindex is None:
            return None
        return path[: block.end(block.lastindex)]

    def depths(self, paths: Collection[str]) -> dict[str, int]:
        """Depth of each leaf: 0 in the stem, 1 ... L in the blocks, L + 1 above them.

        Args:
            paths: all parameters of the backbone.

        Raises:
            ModelError: a path that is in none of the three.
        """
        keys = {path: self.key(path) for path in paths}
        if unknown := [path for path, key in keys.items() if key is None]:
            raise ModelError(
                f"the depth of {unknown[0]} is not known: it is neither in the stem, nor in a block, nor above the "
                "blocks that the backbone's depth_order names; match it by a regular expression"
            )
        blocks = self._blocks(paths)
        depth = {(0,): 0, (2,): len(blocks) + 1} | {block: i for i, block in enumerate(blocks, start=1)}
        return {path: depth[key] for path, key in keys.items() if key}

    def num_blocks(self, paths: Collection[str]) -> int:
        return len(self._blocks(paths))

    def _blocks(self, paths: Collection[str]) -> list[tuple[int, ...]]:
        return sorted({key for path in paths if (key := self.key(path)) and key[0] == 1})


TRANSFORMER = DepthOrder(
    stem=r"(?:embeddings|pre_layrnorm)/.*", blocks=r"encoder/layers/(\d+)/.*", top=r"(?:post_layernorm|pooler)/.*"
)


def depth_order_of(module: object) -> DepthOrder | None:
    """The order that a module's class declares; None where it declares none."""
    order = getattr(module, "depth_order", None)
    return order if isinstance(order, DepthOrder) else None
