"""The order of a backbone's parameters from its input to its output."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from finetune.errors import ModelError


@dataclass(frozen=True)
class DepthOrder:
    """Regular expressions for whole parameter paths of a family's backbone.

    Attributes:
        stem: what comes before the blocks.
        blocks: with the numbers by which they follow each other as groups; a group that is absent counts as 0.
        top: what comes after them.
    """

    stem: str
    blocks: str
    top: str = "(?!)"  # nothing

    def key(self, path: str) -> tuple[int, ...] | None:
        """By which the leaf is sorted; None where the order does not know it."""
        if re.fullmatch(self.stem, path):
            return (0,)
        if block := re.fullmatch(self.blocks, path):
            return 1, *(int(number or 0) for number in block.groups())
        return (2,) if re.fullmatch(self.top, path) else None


TRANSFORMER = DepthOrder(
    stem=r"(?:embeddings|pre_layrnorm)/.*", blocks=r"encoder/layers/(\d+)/.*", top=r"(?:post_layernorm|pooler)/.*"
)


def depths(paths: Collection[str], orders: Iterable[DepthOrder]) -> dict[str, int]:
    """Depth of each leaf: 0 in the stem, 1 ... L in the blocks, L + 1 above them.

    Args:
        paths: all parameters of a backbone.
        orders: the first that knows all of them counts.

    Raises:
        ModelError: none does.
    """
    strange = list(paths)
    for order in orders:
        keys = {path: order.key(path) for path in paths}
        unknown = [path for path, key in keys.items() if key is None]
        if not unknown:
            blocks = sorted({key for key in keys.values() if key and key[0] == 1})
            place = {(0,): 0, (2,): len(blocks) + 1} | {block: i for i, block in enumerate(blocks, start=1)}
            return {path: place[key] for path, key in keys.items() if key}
        strange = min(strange, unknown, key=len)  # to the order that knows the most
    raise ModelError(
        f"the order of this backbone's blocks is not known (it has {strange[0]}, for example): "
        "match its parts by regular expressions, without blocks[...] and layer_decay"
    )
