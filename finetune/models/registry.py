"""The model families that can be loaded."""

from __future__ import annotations

from collections.abc import Collection

from finetune.models.depth import DepthOrder, depth_order_of
from finetune.models.families import clip, convnext, dinov2, mobilenet_v2, resnet, siglip, vit
from finetune.models.family import Family

FAMILIES: tuple[Family, ...] = (
    clip.FAMILY,
    siglip.FAMILY,
    vit.FAMILY,
    dinov2.FAMILY,
    resnet.FAMILY,
    convnext.FAMILY,
    mobilenet_v2.FAMILY,
)


def depth_order_of_tree(paths: Collection[str]) -> DepthOrder | None:
    """The one depth order that knows all of these paths; None where no family's does, or several do.

    For trees without a module; a loaded backbone's module declares its order itself.
    """
    orders = {order for family in FAMILIES if (order := depth_order_of(family.module))}
    known = [order for order in orders if all(order.key(path) for path in paths)]
    return known[0] if len(known) == 1 else None
