"""What a run tells of itself on the card of its model, without folders and names of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from finetune.data.splits import Splits
from finetune.export.card import CardFacts
from finetune.hub import HubId, read_hub_id
from finetune.recipe import ModuleConfig, Recipe


def card_facts(
    recipe: Recipe,
    splits: Splits,
    license: str | None,
    *,
    name: str | None = None,
    result: Mapping[str, Any] | None = None,
    also: Mapping[str, Mapping[str, Any]] | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> CardFacts:
    """What is known of the model of a run.

    Args:
        license: that the backbone's files state.
        name: by default the recipe's.
        result, also, calibration: as the summary has them, of the step whose model it is.
    """
    backbone, config = recipe.backbone, recipe.data
    source = backbone.weights if isinstance(backbone, ModuleConfig) else backbone.source
    base = None if isinstance(backbone, ModuleConfig) else read_hub_id(backbone.source)
    dataset = read_hub_id(config.source)
    return CardFacts(
        name=name or recipe.name,
        backbone=None if source is None else _public(source, base),
        base_model=base and base.repository,
        license=license,
        data=_public(config.source, dataset),
        dataset=dataset and dataset.repository,
        images={split: len(images) for split, images in splits.named().items()},
        result=result,
        also=also or {},
        calibration=calibration,
    )


def _public(source: str, hub_id: HubId | None) -> str:
    """A source, and of a path the last name alone."""
    if hub_id is not None or source.startswith("builtin:"):
        return source
    return PurePath(source).name or "a folder"
