"""The license that a checkpoint's own files state, and where to find weights that others gate."""

from __future__ import annotations

import re

from finetune.errors import ModelError, shown
from finetune.untrusted import read_bytes
from finetune.weights.layout import Checkpoint

_CARD_BYTES = 2**20
_DINOV3_SIZES = {
    "vits16": "vit_small_patch16",
    "vits16plus": "vit_small_plus_patch16",
    "vitb16": "vit_base_patch16",
    "vitl16": "vit_large_patch16",
    "vith16plus": "vit_huge_plus_patch16",
    "vit7b16": "vit_7b_patch16",
}


def read_license(checkpoint: Checkpoint) -> str | None:
    """What timm's configuration or the model card (README.md) says; None where they say nothing."""
    stated = checkpoint.pretrained_cfg.get("license")
    if isinstance(stated, str) and stated:
        return shown(stated)
    try:
        card = read_bytes(checkpoint.folder / "README.md", _CARD_BYTES).decode(errors="replace")
    except ModelError:
        return None
    start, _, front = card.partition("---\n")
    fields = dict(map(_field, front.partition("\n---")[0].splitlines())) if not start else {}
    names = (fields.get("license_name"), fields.get("license"))
    return next((name for name in names if name and re.fullmatch(r"[\w.+ -]{1,200}", name)), None)


def _field(line: str) -> tuple[str, str]:
    """Key and value of a line of YAML, without quotes."""
    key, _, value = line.partition(":")
    return key, value.strip(" \t\"'")


def ungated_copy(repository: str) -> str | None:
    """A repository with the same weights in another layout that asks for no terms to be accepted first."""
    match = re.fullmatch(r"facebook/dinov3-(vit\w+|convnext-\w+)-pretrain-(lvd1689m|sat493m)", repository)
    if match is None:
        return None
    model, data = match.groups()
    if model.startswith("convnext-"):
        return f"timm/{model.replace('-', '_')}.dinov3_{data}"
    size = _DINOV3_SIZES.get(model)
    return None if size is None else f"timm/{size}_dinov3.{data}"
