"""Descriptions of bundles that earlier versions wrote, brought to the current format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune.errors import CheckpointError
from finetune.export.description import FORMAT

_DIGEST_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # there is no novelty file


def upgrade(model: dict[str, Any]) -> dict[str, Any]:
    """A description in the current format; only what the formats differ in is looked at.

    Args:
        model: the content of a ``model.json`` without its own digest; ``format`` is one that this version knows.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: not a description in that format.
        CheckpointError: a network that its format could not describe in full.
    """
    for version in range(model["format"], FORMAT):
        model = {**_UPGRADES[version](dict(model)), "format": version + 1}
    return model


def _from_1(model: dict[str, Any]) -> dict[str, Any]:
    """CLIP's vision tower alone, by the configuration of transformers; images are of one class."""
    family, config = model["backbone"]["family"], model["backbone"]["config"]
    if family != "clip_vision_model":
        raise CheckpointError(f"format 1 had clip_vision_model alone, and this names {family!r}; train the model again")
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "image_size")
    kept = {name: config[name] for name in (*same, "patch_size", "layer_norm_eps", "attention_dropout")}
    clip = {"patch_bias": False, "pre_norm": True, "norm_after_pool": True}
    return {**model, "backbone": {"family": "clip", "config": {**kept, **clip}}}


def _from_2(model: dict[str, Any]) -> dict[str, Any]:
    """``headless`` was called ``whole``, and came later, as ``multi_label`` did."""
    head = dict(model["head"])
    if "whole" in head:
        head["headless"] = head.pop("whole")
    return {"multi_label": False, **model, "head": head}


def _from_3(model: dict[str, Any]) -> dict[str, Any]:
    """The energy was the one score of novelty, half a probability the one threshold; certainties were not kept."""
    confidence = model.get("confidence")
    if confidence is not None:
        confidence = dict(confidence)
        confidence |= {"novelty": "energy", "novelties": confidence.pop("energies"), "certainties": [], "right": []}
        confidence["thresholds"] = [0.5] * len(model["class_names"]) if model["multi_label"] else []
    return {**model, "confidence": confidence, "novelty_sha256": _DIGEST_OF_NOTHING}


def _from_4(model: dict[str, Any]) -> dict[str, Any]:
    """Of fewer images than ``k``, all voted."""
    head = dict(model["head"])
    if head.get("type") == "knn":
        head["config"] = {**head["config"], "k": min(head["config"]["k"], head["config"]["size"])}
    return {**model, "head": head}


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2, 3: _from_3, 4: _from_4}
