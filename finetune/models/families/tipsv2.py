"""The vision tower of TIPSv2 (arXiv:2604.12012): a ViT like DINOv2's with one register token, which its authors train
as a second class token. The pooled vector is the first.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from finetune.errors import ModelError
from finetune.models.families.vit import read_timm
from finetune.models.family import Family, Reader, Reading
from finetune.models.layers.transformer import VisionTransformer, ViTConfig
from finetune.weights.names import (
    Drop,
    Rename,
    Row,
    Split,
    convolution,
    flat,
    linear,
    unbatched,
    weight_and_bias,
)

_ROOT = r"(?:vision_encoder\.)?"
_BLOCK, _LAYER = rf"{_ROOT}blocks\.(\d+)\.", r"encoder.layers.\1."
NAMES: tuple[Row, ...] = (
    Drop(rf"{_ROOT}mask_token"),  # replaces masked patches in pretraining
    Drop(r"text_encoder\..*|temperature"),
    Rename(rf"{_ROOT}cls_token", "embeddings.class_embedding", flat),
    Rename(rf"{_ROOT}register_tokens", "embeddings.register_embedding", unbatched),
    Rename(rf"{_ROOT}pos_embed", "embeddings.position_embedding.embedding", unbatched),
    *weight_and_bias(rf"{_ROOT}patch_embed\.proj", "embeddings.patch_embedding", "kernel", convolution),
    *weight_and_bias(rf"{_ROOT}norm", "post_layernorm", "scale"),
    Split(rf"{_BLOCK}attn\.qkv\.weight", tuple(f"{_LAYER}self_attn.{x}_proj.kernel" for x in "qkv"), linear),
    Split(rf"{_BLOCK}attn\.qkv\.bias", tuple(f"{_LAYER}self_attn.{x}_proj.bias" for x in "qkv")),
    *weight_and_bias(rf"{_BLOCK}attn\.proj", rf"{_LAYER}self_attn.out_proj", "kernel", linear),
    *weight_and_bias(rf"{_BLOCK}norm([12])", rf"{_LAYER}layer_norm\2", "scale"),
    Rename(rf"{_BLOCK}ls([12])\.gamma", rf"{_LAYER}layer_scale\2"),
    *weight_and_bias(rf"{_BLOCK}mlp\.(?:c_fc|w12)", rf"{_LAYER}mlp.fc1", "kernel", linear),
    *weight_and_bias(rf"{_BLOCK}mlp\.(?:c_proj|w3)", rf"{_LAYER}mlp.fc2", "kernel", linear),
)
# The defaults of transformers' Tipsv2VisionConfig, which transformers 4.57 does not have.
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-6,
    "image_size": 448,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "num_register_tokens": 1,
}


def _read_transformers(config: dict[str, Any], names: Collection[str]) -> Reading:
    vision = config.get("vision_config") or {} if config["model_type"] == "tipsv2" else config
    values = {**_DEFAULTS, **vision}
    if values["num_channels"] != 3:
        raise ModelError(f"num_channels: only 3 (RGB) is supported; received {values['num_channels']}")
    inner = int(values["hidden_size"] * values["mlp_ratio"])
    if values["use_swiglu_ffn"]:  # two thirds, so that three kernels have the size of two; a multiple of 8
        inner = (int(inner * 2 / 3) + 7) // 8 * 8
    module_config = ViTConfig(
        hidden_size=values["hidden_size"],
        intermediate_size=inner,
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=values["num_attention_heads"],
        hidden_act=values["hidden_act"],
        layer_norm_eps=values["layer_norm_eps"],
        qkv_bias=values["qkv_bias"],
        gated_mlp=values["use_swiglu_ffn"],
        layer_scale=True,
        dropout=values["hidden_dropout_prob"],
        attention_dropout=values["attention_probs_dropout_prob"],
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        register_tokens=values["num_register_tokens"],
    )
    return Reading(module_config, NAMES)


FAMILY = Family(
    name="tipsv2",
    title="TIPSv2",
    module=VisionTransformer,
    config=ViTConfig,
    license="Apache-2.0",
    readers=(
        Reader(
            "transformers",
            "tipsv2|tipsv2_vision_model",
            _read_transformers,
            "Tipsv2",
            antialias=True,
            bilinear=True,
            any_size=True,
            label="tipsv2, tipsv2_vision_model",
            verified=("features", "other image sizes"),
        ),
        Reader(
            "timm",
            r"vit_[a-z0-9]+_patch14_reg1_tipsv2",
            read_timm,
            antialias=True,
            head="head",
            label="vit_*_patch14_reg1_tipsv2",
            verified=("features", "other image sizes"),
        ),
    ),
)
