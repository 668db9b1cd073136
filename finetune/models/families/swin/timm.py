"""Reads timm's Swin, Swin S3 and Swin V2: architecture names, arguments and tensor names."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Literal

from finetune.errors import ModelError
from finetune.models.families.swin.module import SwinConfig
from finetune.models.families.swin.names import BLOCK, DROPPED, merging_rows
from finetune.models.families.vit import timm_image_size
from finetune.models.family import Reading, timm_arguments
from finetune.models.layers.convolution import require_supported
from finetune.weights.names import Drop, Rename, Row, Split, convolution, linear, weight_and_bias

# Channels of the first stage, blocks of the third, heads of the first; channels and heads double from stage to stage.
_SIZES = {"tiny": (96, 6, 3), "small": (96, 18, 3), "base": (128, 18, 4), "large": (192, 18, 6)}
# Swin S3 (Chen et al. 2021, arXiv:2111.14725), as wide as tiny: windows, and blocks of the third stage.
_S3 = {"tiny": ((7, 7, 14, 7), 6), "small": ((14, 14, 14, 7), 18), "base": ((7, 7, 14, 7), 30)}
ARCHITECTURES_V1 = (
    r"swin_(?P<size>tiny|small|base|large)_patch4_window(?P<window>\d+)_\d+|swin_s3_(?P<s3>tiny|small|base)_224"
)
ARCHITECTURES_V2 = r"swinv2_(?P<size>tiny|small|base|large)_window(?P<from>\d+)(?:to(?P<window>\d+))?_\d+(?:to\d+)?"
_SUPPORTED = {"global_pool": "avg", "always_partition": False, "strict_img_size": True, "dynamic_img_size": False}
_IGNORED = {"img_size", "drop_rate", "proj_drop_rate", "attn_drop_rate", "weight_init"}


def _defaults(size: str, window: Any) -> dict[str, Any]:
    """The arguments that timm's model function passes to its class, and the class's own defaults."""
    width, blocks, heads = _SIZES[size]
    return {
        "patch_size": 4,
        "window_size": window,
        "embed_dim": width,
        "depths": (2, 2, blocks, 2),
        "num_heads": (heads, 2 * heads, 4 * heads, 8 * heads),
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "drop_path_rate": 0.1,
        **_SUPPORTED,
    }


def read_timm_v1(config: dict[str, Any], names: Collection[str]) -> Reading:
    match = re.fullmatch(ARCHITECTURES_V1, config["architecture"])
    assert match is not None  # the reader's ``model_types``
    searched = match["s3"]
    if searched:
        defaults = _defaults("tiny", _S3[searched][0]) | {"depths": (2, 2, _S3[searched][1], 2)}
    else:
        defaults = _defaults(match["size"], int(match["window"]))
    supported = {"head_dim": None}
    arguments = timm_arguments(config, {**defaults, **supported}, _IGNORED)
    require_supported(arguments, supported)
    return _reading(config, arguments, names, version=1)


def read_timm_v2(config: dict[str, Any], names: Collection[str]) -> Reading:
    match = re.fullmatch(ARCHITECTURES_V2, config["architecture"])
    assert match is not None  # the reader's ``model_types``
    pretrained = (12, 12, 12, 6) if match["window"] else (0, 0, 0, 0)
    defaults = _defaults(match["size"], int(match["window"] or match["from"]))
    supported = {"act_layer": "gelu"}
    arguments = timm_arguments(config, {**defaults, **supported, "pretrained_window_sizes": pretrained}, _IGNORED)
    require_supported(arguments, supported)
    return _reading(config, arguments, names, version=2)


def _reading(
    config: dict[str, Any], arguments: dict[str, Any], names: Collection[str], version: Literal[1, 2]
) -> Reading:
    require_supported(arguments, _SUPPORTED)
    stages, image_size = len(arguments["depths"]), timm_image_size(config, arguments)
    module_config = SwinConfig(
        image_size=image_size,
        patch_size=arguments["patch_size"],
        embed_dim=arguments["embed_dim"],
        depths=tuple(arguments["depths"]),
        num_heads=tuple(arguments["num_heads"]),
        window_sizes=_windows(arguments["window_size"], stages),
        window_rule="scaled",
        reference_grid=image_size // arguments["patch_size"],
        version=version,
        pretrained_windows=tuple(arguments["pretrained_window_sizes"])[:stages] if version == 2 else (),
        mlp_ratio=arguments["mlp_ratio"],
        qkv_bias=arguments["qkv_bias"],
        drop_path_rate=arguments["drop_path_rate"],
    )
    return Reading(module_config, _names(stages, names))


def _windows(window_size: Any, stages: int) -> tuple[int, ...]:
    """timm's ``window_size`` for each stage: one number, (height, width), or one of these for each stage."""
    if isinstance(window_size, int):
        return (window_size,) * stages
    if len(window_size) == 2 and isinstance(window_size[0], int):
        window_size = [window_size] * stages
    edges = [(edge, edge) if isinstance(edge, int) else edge for edge in window_size]
    if any(height != width for height, width in edges):
        raise ModelError(f"window_size: only square windows are supported; received {window_size}")
    return tuple(height for height, _ in edges)


def _names(stages: int, names: Collection[str]) -> tuple[Row, ...]:
    block = r"layers\.(\d+)\.blocks\.(\d+)"
    attention, path = rf"{block}\.attn", f"{BLOCK}.attention"
    # before timm 0.9, a stage ended by merging patches
    first = 0 if "layers.0.downsample.reduction.weight" in names else 1
    return (
        DROPPED,
        *weight_and_bias(r"patch_embed\.proj", "stem.conv", "kernel", convolution),
        *weight_and_bias(r"patch_embed\.norm", "stem.norm", "scale"),
        *(row for i in range(1, stages) for row in merging_rows(rf"layers\.{i - 1 + first}", f"stages_{i}")),
        Split(rf"{attention}\.qkv\.weight", tuple(f"{path}.{x}_proj.kernel" for x in "qkv"), linear),
        Split(rf"{attention}\.qkv\.bias", tuple(f"{path}.{x}_proj.bias" for x in "qkv")),
        Rename(rf"{attention}\.([qv])_bias", rf"{path}.\3_proj.bias"),
        *weight_and_bias(rf"{attention}\.proj", f"{path}.out_proj", "kernel", linear),
        Rename(rf"{attention}\.relative_position_bias_table", f"{path}.relative_position_embedding"),
        Rename(rf"{attention}\.logit_scale", f"{path}.logit_scale"),
        *weight_and_bias(rf"{attention}\.cpb_mlp\.0", f"{path}.position_bias.fc1", "kernel", linear),
        Rename(rf"{attention}\.cpb_mlp\.2\.weight", f"{path}.position_bias.fc2.kernel", linear),
        *weight_and_bias(rf"{block}\.norm([12])", rf"{BLOCK}.norm\3", "scale"),
        *weight_and_bias(rf"{block}\.mlp\.fc([12])", rf"{BLOCK}.mlp.fc\3", "kernel", linear),
        *weight_and_bias(r"norm", "norm", "scale"),
        Drop(r"head\..*"),
    )
