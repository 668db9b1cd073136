"""Reads transformers' checkpoints of EfficientNet."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from finetune.errors import ModelError
from finetune.models.families.efficientnet.module import BlockConfig, EfficientNetConfig
from finetune.models.family import Reading, parse_transformers
from finetune.models.layers.convolution import conv_norm_names, divisible, require_supported
from finetune.weights.names import Drop, Row, pointwise, weight_and_bias


def read_transformers(config: dict[str, Any], names: Collection[str]) -> Reading:
    """The network that a ``config.json`` of transformers describes."""
    parsed = parse_transformers("EfficientNetConfig", config)
    require_supported(vars(parsed), {"pooling_type": "mean"})
    num_features = _scaled(parsed, 1280)
    if parsed.hidden_dim != num_features:
        raise ModelError(
            f"hidden_dim: the last convolution has {num_features} channels by width_coefficient; received "
            f"{parsed.hidden_dim}"
        )
    module_config = EfficientNetConfig(
        stem_size=_scaled(parsed, 32),
        blocks=tuple(_blocks(parsed)),
        num_features=num_features,
        hidden_act=parsed.hidden_act,
        padding="even",
        batch_norm_eps=parsed.batch_norm_eps,
        # transformers passes the decay to PyTorch as the momentum, where it means the opposite
        batch_norm_momentum=parsed.batch_norm_momentum,
        drop_path_rate=parsed.drop_connect_rate,
    )
    return Reading(module_config, _names())


def _scaled(parsed: Any, channels: int) -> int:
    return divisible(channels * parsed.width_coefficient, parsed.depth_divisor, parsed.depth_divisor)


def _blocks(parsed: Any) -> list[BlockConfig]:
    blocks: list[BlockConfig] = []
    stages = zip(
        parsed.in_channels,
        parsed.out_channels,
        parsed.kernel_sizes,
        parsed.strides,
        parsed.expand_ratios,
        parsed.num_block_repeats,
        strict=True,
    )
    for inputs, outputs, kernel, stride, ratio, repeats in stages:
        hidden = _scaled(parsed, outputs)
        for j in range(math.ceil(parsed.depth_coefficient * repeats)):
            width = hidden if j else _scaled(parsed, inputs)
            block = BlockConfig(
                input_size=width,
                hidden_size=hidden,
                inner_size=width * ratio,
                stride=1 if j else stride,
                expand=1 if ratio != 1 else 0,
                depthwise=kernel,
                squeezed=max(1, int(width * parsed.squeeze_expansion_ratio)),
                shortcut=j > 0,
                hidden_act=parsed.hidden_act,
                symmetric=len(blocks) in parsed.depthwise_padding,
            )
            blocks.append(block)
    return blocks


def _names() -> tuple[Row, ...]:
    encoder = r"(?:efficientnet\.)?encoder"
    block, path = rf"{encoder}\.blocks\.(\d+)", r"blocks_\1"
    squeeze, squeeze_path = rf"{block}\.squeeze_excite", rf"{path}.squeeze_excite"
    depthwise, projection = rf"{block}\.depthwise_conv\.depthwise", rf"{block}\.projection\.project"
    stem = r"(?:efficientnet\.)?embeddings"
    return (
        *conv_norm_names(rf"{stem}\.convolution", rf"{stem}\.batchnorm", "stem"),
        *conv_norm_names(rf"{block}\.expansion\.expand_conv", rf"{block}\.expansion\.expand_bn", rf"{path}.expand"),
        *conv_norm_names(rf"{depthwise}_conv", rf"{depthwise}_norm", rf"{path}.depthwise"),
        *weight_and_bias(rf"{squeeze}\.reduce", rf"{squeeze_path}.reduce", "kernel", pointwise),
        *weight_and_bias(rf"{squeeze}\.expand", rf"{squeeze_path}.expand", "kernel", pointwise),
        *conv_norm_names(rf"{projection}_conv", rf"{projection}_bn", rf"{path}.project"),
        *conv_norm_names(rf"{encoder}\.top_conv", rf"{encoder}\.top_bn", "top"),
        Drop(r"classifier\..*"),
    )
