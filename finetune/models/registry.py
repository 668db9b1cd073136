"""The model families that can be loaded."""

from __future__ import annotations

from collections.abc import Collection

from finetune.models.depth import DepthOrder, depth_order_of
from finetune.models.families import (
    aimv2,
    beit,
    clip,
    clip_resnet,
    convnext,
    dinov2,
    dinov3,
    efficientnet,
    eva02,
    ijepa,
    mobilenet_v2,
    open_clip,
    pe_core,
    resnet,
    siglip,
    swin,
    tipsv2,
    vit,
    vit_mae,
)
from finetune.models.family import Family

FAMILIES: tuple[Family, ...] = (
    clip.FAMILY,
    open_clip.FAMILY,
    clip_resnet.FAMILY,
    siglip.FAMILY,
    vit.FAMILY,
    dinov2.FAMILY,
    dinov3.FAMILY,
    eva02.FAMILY,
    pe_core.FAMILY,
    tipsv2.FAMILY,
    aimv2.FAMILY,
    beit.FAMILY,
    vit_mae.FAMILY,
    ijepa.FAMILY,
    swin.FAMILY,
    resnet.FAMILY,
    convnext.FAMILY,
    mobilenet_v2.FAMILY,
    efficientnet.FAMILY,
)


def depth_order_of_tree(paths: Collection[str]) -> DepthOrder | None:
    """The one depth order that knows all of these paths; None where no family's does, or several do.

    For trees without a module; a loaded backbone's module declares its order itself.
    """
    orders = {order for family in FAMILIES if (order := depth_order_of(family.module))}
    known = [order for order in orders if all(order.key(path) for path in paths)]
    return known[0] if len(known) == 1 else None
