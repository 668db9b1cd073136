"""EVA-02 (Fang et al. 2023, arXiv:2303.11331) and the vision towers of EVA-02-CLIP (Sun et al. 2023,
arXiv:2303.15389): learned and rotary positions, SwiGLU with a norm inside.

Also reads timm's ``Eva``, whose layout DINOv3 and PE-Core have too.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from finetune.models.families.vit import TIMM_NAMES, timm_image_size, timm_pooling
from finetune.models.family import Family, Reader, Reading, timm_arguments
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.weights.names import Drop, Rename, Row, linear, weight_and_bias

_BLOCK, _LAYER = r"blocks\.(\d+)\.", r"encoder.layers.\1."
EVA_NAMES: tuple[Row, ...] = (
    Drop(r"mask_token|lm_head\..*"),  # of pretraining
    Drop(r"rope\.(?:bands|periods|pos_embed\w*)"),  # computed, not learned
    *weight_and_bias(rf"{_BLOCK}attn\.([qkv])_proj", rf"{_LAYER}self_attn.\2_proj", "kernel", linear),
    Rename(rf"{_BLOCK}attn\.([qv])_bias", rf"{_LAYER}self_attn.\2_proj.bias"),
    *weight_and_bias(rf"{_BLOCK}attn\.norm", rf"{_LAYER}self_attn.norm", "scale"),
    Rename(rf"{_BLOCK}gamma_([12])", rf"{_LAYER}layer_scale\2"),
    *weight_and_bias(rf"{_BLOCK}mlp\.fc1_g", rf"{_LAYER}mlp.gate", "kernel", linear),
    *weight_and_bias(rf"{_BLOCK}mlp\.fc1_x", rf"{_LAYER}mlp.fc1", "kernel", linear),
    *weight_and_bias(rf"{_BLOCK}mlp\.norm", rf"{_LAYER}mlp.norm", "scale"),
    *TIMM_NAMES,
)

# Options of timm's model functions that are read, or have no effect on the features.
_ARGUMENTS = {"img_size", "global_pool", "dynamic_img_size", "drop_rate", "drop_path_rate", "attn_drop_rate"}
_ARGUMENTS |= {"proj_drop_rate", "pos_drop_rate", "head_init_scale"}


def read_eva(
    config: dict[str, Any],
    names: Collection[str],
    sizes: dict[str, Any],
    *,
    pool: str = "avg",
    align_mlp: int = 1,
    norm_after_mean: bool = False,
    **fields: Any,
) -> Reading:
    """Reads timm's ``Eva``; which layers and biases a model has is seen from the names of its tensors.

    Args:
        config: content of timm's ``config.json``.
        names: of the tensors.
        sizes: ``embed_dim``, ``depth``, ``num_heads``, ``mlp_ratio`` and ``patch_size`` of the architecture.
        pool: the architecture's ``global_pool``.
        align_mlp: the hidden width of the MLP is rounded up to a multiple of it.
        norm_after_mean: where the patches' mean is the pooled vector, the last norm is applied to it, also if it is
            called ``norm`` rather than ``fc_norm``.
        fields: of the ViTConfig, fixed by the architecture.

    Raises:
        ModelError: an option that is not supported.
    """
    arguments = timm_arguments(config, sizes, _ARGUMENTS)
    pooling = timm_pooling(config, arguments, names, pool)
    width = arguments["embed_dim"]
    biases = {"blocks.0.attn.q_bias", "blocks.0.attn.q_proj.bias", "blocks.0.attn.qkv.bias"}
    found: dict[str, Any] = {
        "qkv_bias": not biases.isdisjoint(names),
        "key_bias": "blocks.0.attn.qkv.bias" in names,
        "split_gate": "blocks.0.mlp.fc1_g.weight" in names,
        "attention_norm": "blocks.0.attn.norm.weight" in names,
        "mlp_norm": "blocks.0.mlp.norm.weight" in names,
        "layer_scale": "blocks.0.gamma_1" in names,
        "patch_bias": "patch_embed.proj.bias" in names,
        "class_token": "cls_token" in names,
        "learned_positions": "pos_embed" in names,
        "pre_norm": "norm_pre.weight" in names,
    }
    module_config = ViTConfig(
        hidden_size=width,
        intermediate_size=-(-int(width * arguments["mlp_ratio"]) // align_mlp) * align_mlp,
        num_hidden_layers=arguments["depth"],
        num_attention_heads=arguments["num_heads"],
        image_size=timm_image_size(config, arguments),
        patch_size=arguments["patch_size"],
        pooling=pooling,
        norm_after_pool="fc_norm.weight" in names or (norm_after_mean and pooling == "mean"),
        **(found | fields),
    )
    return Reading(module_config, EVA_NAMES)


# timm's sizes: width, blocks, heads.
_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
_MIM = r"eva02_(?:tiny|small|base|large)_patch\d+_\d+"
_CLIP = r"eva02_(?:base|large)_patch\d+_clip_\d+"


def _read(config: dict[str, Any], names: Collection[str]) -> Reading:
    match = re.match(r"eva02_([a-z]+)_patch(\d+)", config["architecture"])
    assert match is not None  # the reader's ``model_types``
    width, depth, heads = _SIZES[match[1]]
    sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": 8 / 3, "patch_size": int(match[2])}
    return read_eva(
        config,
        names,
        sizes,
        pool="token" if "_clip_" in config["architecture"] else "avg",
        norm_after_mean=True,
        gated_mlp=True,
        rope="indices",
        rope_reference=16,
    )


FAMILY = Family(
    name="eva02",
    title="EVA-02",
    module=VisionTransformer,
    config=ViTConfig,
    license="MIT",
    readers=(
        Reader(
            "timm",
            _MIM,
            _read,
            antialias=True,
            head="head",
            label="eva02_*_patch14_*",
            verified=("features", "other image sizes", "logits", "a training step"),
        ),
        Reader(
            "timm",
            _CLIP,
            _read,
            antialias=True,
            label="eva02_*_patch*_clip_*",
            verified=("features", "other image sizes", "a training step"),
        ),
    ),
)
