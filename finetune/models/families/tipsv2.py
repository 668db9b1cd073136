"""TIPSv2 (arXiv:2604.12012): a ViT like DINOv2's with one register token, which its authors train as a second class
token, and a text tower that reads in both directions. An image is embedded as its first class token, a text as the
mean of its tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from math import log
from typing import Any

import numpy as np

from finetune.errors import ModelError
from finetune.models.families.clip import CLIPConfig, CLIPModule
from finetune.models.families.open_clip import block_rows
from finetune.models.families.vit import read_timm
from finetune.models.family import Family, Reader, Reading
from finetune.models.layers.text import TextConfig
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.weights.names import (
    Drop,
    Rename,
    Row,
    Split,
    convolution,
    flat,
    linear,
    nested,
    unbatched,
    weight_and_bias,
)


def _log_of_inverse(temperature: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # shapes are found with zeros
        return np.asarray(-np.log(temperature.reshape(())))


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
BOTH_NAMES: tuple[Row, ...] = (
    Rename(r"temperature", "logit_scale", _log_of_inverse),
    Rename(r"text_encoder\.token_embedding\.weight", "text_model.embeddings.token_embedding.embedding"),
    *weight_and_bias(r"text_encoder\.ln_final", "text_model.final_layer_norm", "scale"),
    *block_rows(r"text_encoder\.transformer", "text_model"),
    *nested(NAMES, "", "vision_model"),
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
_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
_TEMPERATURE = 0.005065968260169029  # of the default configuration; the published files leave it out


def _read_both(config: dict[str, Any], names: Collection[str]) -> Reading:
    """Both towers, or the vision tower alone where there is no other."""
    vision = _read_vision(config.get("vision_config") or {}, names)
    if not any(name.startswith("text_encoder.") for name in names):
        return vision
    text = {**_TEXT_DEFAULTS, **(config.get("text_config") or {})}
    logit_scale = -log(config.get("temperature_init_value", _TEMPERATURE))
    both = CLIPConfig(
        vision_config=vision.config,
        text_config=TextConfig(
            **{key: text[key] for key in _TEXT_DEFAULTS},
            causal=False,
            pooling="mean",
            padding_hidden=True,
            learned_positions=False,
            embedding_scale=text["hidden_size"] ** 0.5 if text.get("scale_sqrt_depth", True) else 1.0,
        ),
        projection_dim=text["hidden_size"],
        visual_projection=False,
        text_projection=False,
        logit_scale_init_value=logit_scale,
    )
    return Reading(both, BOTH_NAMES, defaults={"logit_scale": logit_scale})


def _read_vision(config: dict[str, Any], names: Collection[str]) -> Reading:
    values = {**_DEFAULTS, **config}
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
            "tipsv2",
            _read_both,
            "Tipsv2",
            module=CLIPModule,
            antialias=True,
            bilinear=True,
            any_size=True,
            verified=("features", "other image sizes", "text features"),
        ),
        Reader(
            "transformers",
            "tipsv2_vision_model",
            _read_vision,
            "Tipsv2",
            antialias=True,
            bilinear=True,
            any_size=True,
            verified=("features",),
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
