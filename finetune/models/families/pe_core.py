"""PE-Core, the vision towers of the Perception Encoder (Bolya et al. 2025, arXiv:2504.13181): learned and rotary
positions, attention pooling."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from finetune.models.families.eva02 import read_eva
from finetune.models.family import Family, Reader, Reading
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig

# timm's sizes: width, blocks, heads, ratio of the MLP's width to it.
_SIZES = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "gigantic": (1536, 50, 16, 8960 / 1536),
}
_ARCHITECTURES = rf"vit_pe_core_(?P<size>{'|'.join(_SIZES)})_patch(?P<patch>\d+)_(?P<image>\d+)"


def _read(config: dict[str, Any], names: Collection[str]) -> Reading:
    match = re.fullmatch(_ARCHITECTURES, config["architecture"])
    assert match is not None  # the reader's ``model_types``
    width, depth, heads, ratio = _SIZES[match["size"]]
    sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": ratio}
    sizes["patch_size"] = int(match["patch"])
    width = config.get("model_args", {}).get("embed_dim", width)
    return read_eva(
        config,
        names,
        sizes,
        pool="map",
        layer_norm_eps=1e-5,
        rope="indices_xy",
        rope_reference=int(match["image"]) // int(match["patch"]),
        rope_offset=float("cls_token" in names),  # the indices start behind the class token
        pool_heads=8,
        pool_intermediate_size=4 * width,
    )


FAMILY = Family(
    name="pe_core",
    title="PE-Core",
    module=VisionTransformer,
    config=ViTConfig,
    license="Apache-2.0",
    readers=(
        Reader(
            "timm",
            _ARCHITECTURES,
            _read,
            antialias=True,
            label="vit_pe_core_*",
            verified=("features", "other image sizes", "a training step"),
        ),
    ),
)
