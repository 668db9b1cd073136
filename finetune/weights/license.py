"""The license that a checkpoint's own files state, and where to find weights that others gate."""

from __future__ import annotations

import re

from finetune.weights.layout import Checkpoint

_MOST = 2**16  # characters of a model card that are looked at
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
    stated = checkpoint.config.get("pretrained_cfg", {}).get("license")
    if isinstance(stated, str) and stated:
        return stated
    card = checkpoint.folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")[:_MOST]
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    fields = dict(
        re.findall(r"^(license(?:_name)?):[ \t]*[\"']?([\w.+ -]+?)[\"']?[ \t]*$", front[1] if front else "", re.M)
    )
    return fields.get("license_name") or fields.get("license")


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
