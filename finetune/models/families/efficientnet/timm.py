"""Reads timm's checkpoints: EfficientNet, EfficientNetV2, MobileNetV3 and MobileNetV4."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from finetune.errors import ModelError
from finetune.models.families.efficientnet.architectures import (
    ARCHITECTURES,
    Architecture,
    NamedBlock,
    build_blocks,
)
from finetune.models.families.efficientnet.module import EfficientNetConfig
from finetune.models.family import Reading, timm_arguments
from finetune.models.layers.convolution import conv_norm_names, require_supported
from finetune.weights.names import Drop, Row, pointwise, weight_and_bias

_PADDING = {"": "symmetric", "same": "same"}
_SUPPORTED = {"output_stride": 32, "global_pool": "avg"}
_IGNORED = {"drop_rate"}  # in front of the classifier

# The convolutions and norms of each kind of block, and which step of ours they are.
_STEPS = {
    "cn": (("conv", "bn1", "expand"),),
    "ds": (("conv_dw", "bn1", "depthwise"), ("conv_pw", "bn2", "project")),
    "ir": (("conv_pw", "bn1", "expand"), ("conv_dw", "bn2", "depthwise"), ("conv_pwl", "bn3", "project")),
    "er": (("conv_exp", "bn1", "expand"), ("conv_pwl", "bn2", "project")),
    "uir": tuple(
        (rf"{name}\.conv", rf"{name}\.bn", step)
        for name, step in {
            "dw_start": "first_depthwise",
            "pw_exp": "expand",
            "dw_mid": "depthwise",
            "pw_proj": "project",
        }.items()
    ),
}


def read_timm(config: dict[str, Any], names: Collection[str]) -> Reading:
    """The network that a ``config.json`` of timm describes."""
    arch = ARCHITECTURES[config["architecture"]]
    defaults = {
        "channel_multiplier": arch.width,
        "depth_multiplier": arch.depth,
        "act_layer": arch.hidden_act,
        "pad_type": arch.pad_type,
        "bn_eps": arch.bn_eps,
        "bn_momentum": 0.1,
        "drop_path_rate": 0.0,
    }
    args = timm_arguments(config, {**defaults, **_SUPPORTED}, _IGNORED)
    require_supported(args, _SUPPORTED)
    if args["pad_type"] not in _PADDING:
        raise ModelError(f"pad_type: only '' and 'same' are supported; received {args['pad_type']!r}")
    arch = replace(arch, width=args["channel_multiplier"], depth=args["depth_multiplier"], hidden_act=args["act_layer"])
    blocks = build_blocks(arch)
    module_config = EfficientNetConfig(
        stem_size=blocks[0].config.input_size,
        blocks=tuple(block.config for block in blocks),
        num_features=arch.num_features if arch.fixed_features else arch.scaled(arch.num_features),
        top=arch.top,
        hidden_act=arch.hidden_act,
        squeeze_act=arch.squeeze_act,
        squeeze_gate=arch.squeeze_gate,
        padding=_PADDING[args["pad_type"]],  # type: ignore[arg-type]
        batch_norm_eps=args["bn_eps"],
        batch_norm_momentum=1 - args["bn_momentum"],
        drop_path_rate=args["drop_path_rate"],
    )
    return Reading(module_config, _names(arch, blocks))


def block_names(block: NamedBlock, path: str) -> tuple[Row, ...]:
    """The rows of one block.

    Args:
        path: of the block.
    """
    rows: list[Row] = []
    for conv, norm, step in _STEPS[block.kind]:
        rows += conv_norm_names(rf"{block.name}\.{conv}", rf"{block.name}\.{norm}", f"{path}.{step}")
    for step in ("reduce", "expand"):
        rows += weight_and_bias(rf"{block.name}\.se\.conv_{step}", f"{path}.squeeze_excite.{step}", "kernel", pointwise)
    return tuple(rows)


def _names(arch: Architecture, blocks: list[NamedBlock]) -> tuple[Row, ...]:
    return (
        *conv_norm_names("conv_stem", "bn1", "stem"),
        *(row for i, block in enumerate(blocks) for row in block_names(block, f"blocks_{i}")),
        *_top_names(arch),
        Drop(r"classifier\..*"),
    )


def _top_names(arch: Architecture) -> tuple[Row, ...]:
    if arch.top == "convolution":
        return conv_norm_names("conv_head", "bn2", "top")
    if arch.top == "dense with norm":
        return conv_norm_names("conv_head", "norm_head", "top")
    rows = weight_and_bias("conv_head", "top", "kernel", pointwise)
    return rows if arch.top == "dense" else rows[:1]
