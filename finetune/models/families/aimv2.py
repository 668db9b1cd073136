"""AIMv2 (Fini et al. 2024, arXiv:2411.14402): RMSNorm, SwiGLU, no class token and hardly any bias.

transformers pools by attention (``use_head``); without it, and in timm, the pooled vector is the mean of the patches.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from finetune.models.families.eva02 import read_eva
from finetune.models.family import Family, Reader, Reading, parse_transformers
from finetune.models.layers.convolution import require_supported
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.weights.names import Rename, Row, convolution, flat, linear, weight_and_bias

_BLOCK, _LAYER = r"encoder\.layers\.(\d+)\.", r"encoder.layers.\1."
NAMES: tuple[Row, ...] = (
    *weight_and_bias(r"embeddings\.patch_embed", "embeddings.patch_embedding", "kernel", convolution),
    Rename(r"embeddings\.position_embedding\.weight", "embeddings.position_embedding.embedding"),
    Rename(r"embeddings\.rms_norm\.weight", "embeddings.norm.scale"),
    *weight_and_bias(rf"{_BLOCK}attention\.([qkv]|out)_proj", rf"{_LAYER}self_attn.\2_proj", "kernel", linear),
    Rename(rf"{_BLOCK}rms_norm([12])\.weight", rf"{_LAYER}layer_norm\2.scale"),
    *weight_and_bias(rf"{_BLOCK}ffn\.gate_proj", rf"{_LAYER}mlp.gate", "kernel", linear),
    *weight_and_bias(rf"{_BLOCK}ffn\.up_proj", rf"{_LAYER}mlp.fc1", "kernel", linear),
    *weight_and_bias(rf"{_BLOCK}ffn\.down_proj", rf"{_LAYER}mlp.fc2", "kernel", linear),
    Rename(r"rms_norm\.weight", "post_layernorm.scale"),
    Rename(r"head\.cls_token", "pooler.probe", flat),
    *weight_and_bias(r"head\.([kv])_proj", r"pooler.\1_proj", "kernel", linear),
    *weight_and_bias(r"head\.output_proj", "pooler.out_proj", "kernel", linear),
)
_FIELDS: dict[str, Any] = {
    "norm": "rms",
    "gated_mlp": True,
    "class_token": False,
    "embedding_norm": True,
}


def _read_transformers(config: dict[str, Any], names: Collection[str]) -> Reading:
    parsed = parse_transformers("Aimv2VisionConfig", config)
    # A native model has computed positions, and takes images of any size.
    require_supported(vars(parsed), {"is_native": False, "hidden_act": "silu"})
    module_config = ViTConfig(
        **_FIELDS,
        hidden_size=parsed.hidden_size,
        intermediate_size=parsed.intermediate_size,
        num_hidden_layers=parsed.num_hidden_layers,
        num_attention_heads=parsed.num_attention_heads,
        layer_norm_eps=parsed.rms_norm_eps,
        qkv_bias=parsed.qkv_bias,
        out_bias=parsed.qkv_bias,
        mlp_bias=parsed.mlp_bias,
        split_gate=True,
        attention_dropout=parsed.attention_dropout,
        image_size=parsed.image_size,
        patch_size=parsed.patch_size,
        pooling="query" if parsed.use_head else "mean",
    )
    return Reading(module_config, NAMES)


# timm's sizes: width, blocks, heads, ratio of the MLP's width to it.
_SIZES = {
    "large": (1024, 24, 8, 2.75),
    "huge": (1536, 24, 12, 2.6667),
    "1b": (2048, 24, 16, 2.75),
    "3b": (3072, 24, 24, 2.6667),
}
_ARCHITECTURES = rf"aimv2_(?P<size>{'|'.join(_SIZES)})_patch(?P<patch>\d+)_\d+"
_TIMM_NAMES: tuple[Row, ...] = (Rename(r"patch_embed\.norm\.weight", "embeddings.norm.scale"),)


def _read_timm(config: dict[str, Any], names: Collection[str]) -> Reading:
    match = re.fullmatch(_ARCHITECTURES, config["architecture"])
    assert match is not None  # the reader's ``model_types``
    width, depth, heads, ratio = _SIZES[match["size"]]
    sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": ratio}
    sizes["patch_size"] = int(match["patch"])
    reading = read_eva(config, names, sizes, layer_norm_eps=1e-5, out_bias=False, mlp_bias=False, **_FIELDS)
    return replace(reading, names=(*_TIMM_NAMES, *reading.names))


FAMILY = Family(
    name="aimv2",
    title="AIMv2",
    module=VisionTransformer,
    config=ViTConfig,
    license="Apple AMLR",
    readers=(
        Reader(
            "transformers",
            "aimv2_vision_model",
            _read_transformers,
            "CLIP",
            verified=("features", "a training step"),
        ),
        Reader(
            "timm",
            _ARCHITECTURES,
            _read_timm,
            antialias=True,
            head="head",
            label="aimv2_*",
            verified=("features", "other image sizes"),
        ),
    ),
)
