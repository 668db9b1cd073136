"""DINOv3 Vision Transformers (Siméoni et al. 2025, arXiv:2508.10104): register tokens, rotary positions of the patches
and no learned ones, a plain or a gated MLP. The DINOv3 ConvNeXts are in :mod:`finetune.models.families.convnext`.

Any image size goes, square or not; what lies beyond the last complete patch is ignored.

- transformers' model rescales the positions at random in training (``pos_embed_rescale``), which makes the losses of
  two runs differ. That was an augmentation of pretraining, and is left out here: training sees the positions that
  evaluation sees.
- The features of transformers are the class token, as in the paper; those of timm are the mean of the patches, where
  its files do not say ``token``.
- The rotation's frequencies are those of transformers and timm, float32. Meta's own code rounds them to bfloat16, and
  its features differ accordingly.
- transformers' files say 224 pixels, timm's 256. Models that were trained on satellite images (``sat493m``) have
  another mean and standard deviation, which their files state.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from finetune.errors import ModelError
from finetune.models.families.eva02 import read_eva
from finetune.models.family import Family, Reader, Reading, parse_transformers, square_sizes
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.weights.names import Drop, Rename, Row, convolution, flat, linear, unbatched, weight_and_bias

_BLOCK, _LAYER = r"(?:model\.)?layer\.(\d+)\.", r"encoder.layers.\1."
NAMES: tuple[Row, ...] = (
    Drop(r"embeddings\.mask_token"),  # replaces masked patches in pretraining
    Rename(r"embeddings\.cls_token", "embeddings.class_embedding", flat),
    Rename(r"embeddings\.register_tokens", "embeddings.register_embedding", unbatched),
    *weight_and_bias(r"embeddings\.patch_embeddings", "embeddings.patch_embedding", "kernel", convolution),
    *weight_and_bias(rf"{_BLOCK}attention\.([qkv])_proj", rf"{_LAYER}self_attn.\2_proj", "kernel", linear),
    *weight_and_bias(rf"{_BLOCK}attention\.o_proj", rf"{_LAYER}self_attn.out_proj", "kernel", linear),
    *weight_and_bias(rf"{_BLOCK}norm([12])", rf"{_LAYER}layer_norm\2", "scale"),
    Rename(rf"{_BLOCK}layer_scale([12])\.lambda1", rf"{_LAYER}layer_scale\2"),
    *weight_and_bias(rf"{_BLOCK}mlp\.gate_proj", rf"{_LAYER}mlp.gate", "kernel", linear),
    *weight_and_bias(rf"{_BLOCK}mlp\.up_proj", rf"{_LAYER}mlp.fc1", "kernel", linear),
    *weight_and_bias(rf"{_BLOCK}mlp\.down_proj", rf"{_LAYER}mlp.fc2", "kernel", linear),
    *weight_and_bias("norm", "post_layernorm", "scale"),
)


def _read_transformers(config: dict[str, Any], names: Collection[str]) -> Reading:
    parsed = parse_transformers("DINOv3ViTConfig", config)
    if parsed.query_bias != parsed.value_bias or (parsed.key_bias and not parsed.query_bias):
        received = f"query_bias {parsed.query_bias}, key_bias {parsed.key_bias}, value_bias {parsed.value_bias}"
        raise ModelError(f"queries and values have biases both or neither, keys only with them; received {received}")
    if parsed.use_gated_mlp and parsed.hidden_act not in ("silu", "swish"):
        raise ModelError(f"hidden_act: with use_gated_mlp only silu is supported; received {parsed.hidden_act!r}")
    image_size, patch_size = square_sizes(parsed)
    module_config = ViTConfig(
        hidden_size=parsed.hidden_size,
        intermediate_size=parsed.intermediate_size,
        num_hidden_layers=parsed.num_hidden_layers,
        num_attention_heads=parsed.num_attention_heads,
        hidden_act=parsed.hidden_act,
        layer_norm_eps=parsed.layer_norm_eps,
        qkv_bias=parsed.query_bias,
        key_bias=parsed.key_bias,
        out_bias=parsed.proj_bias,
        mlp_bias=parsed.mlp_bias,
        gated_mlp=parsed.use_gated_mlp,
        split_gate=parsed.use_gated_mlp,
        layer_scale=True,
        attention_dropout=parsed.attention_dropout,
        image_size=image_size,
        patch_size=patch_size,
        register_tokens=parsed.num_register_tokens,
        learned_positions=False,
        rope="centers",
        rope_base=parsed.rope_theta,
    )
    return Reading(module_config, NAMES)


# timm's sizes: width, blocks, heads, ratio of the MLP's width to it; of a gated one, what its width is a multiple of.
_SIZES: dict[str, tuple[int, int, int, float, int | None]] = {
    "tiny": (192, 12, 3, 4.0, None),
    "small": (384, 12, 6, 4.0, None),
    "small_plus": (384, 12, 6, 4.0, 8),
    "base": (768, 12, 12, 4.0, None),
    "large": (1024, 24, 16, 4.0, None),
    "huge_plus": (1280, 32, 20, 4.0, 8),
    "7b": (4096, 40, 32, 2.0, 64),
}
_ARCHITECTURES = rf"vit_(?P<size>{'|'.join(_SIZES)})_patch(?P<patch>\d+)_dinov3(?:_qkvb)?"


def _read_timm(config: dict[str, Any], names: Collection[str]) -> Reading:
    match = re.fullmatch(_ARCHITECTURES, config["architecture"])
    assert match is not None  # the reader's ``model_types``
    width, depth, heads, ratio, align = _SIZES[match["size"]]
    sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": ratio}
    sizes["patch_size"] = int(match["patch"])
    return read_eva(
        config,
        names,
        sizes,
        align_mlp=align or 1,
        layer_norm_eps=1e-5,
        gated_mlp=align is not None,
        register_tokens=4,
        rope="centers",
        rope_base=100.0,
    )


FAMILY = Family(
    name="dinov3",
    title="DINOv3",
    module=VisionTransformer,
    config=ViTConfig,
    license="DINOv3 License",
    readers=(
        Reader(
            "transformers",
            "dinov3_vit",
            _read_transformers,
            "DINOv3ViT",
            any_size=True,
            verified=("features", "other image sizes", "a training step"),
        ),
        Reader(
            "timm",
            _ARCHITECTURES,
            _read_timm,
            any_size=True,
            head="head",
            label="vit_*_patch16_dinov3, vit_*_patch16_dinov3_qkvb",
            verified=("features", "other image sizes"),
        ),
    ),
)
