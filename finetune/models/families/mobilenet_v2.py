"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.models.depth import DepthOrder
from finetune.models.family import Family, Reader, Reading, parse_transformers, timm_arguments
from finetune.models.layers.base import BackboneOutput, DropPath, rematerialized
from finetune.models.layers.convolution import ConvNorm, conv_norm_names, require_supported
from finetune.weights.names import Drop, Row


@dataclass(frozen=True, kw_only=True)
class MobileNetV2Config:
    """Sizes and variants; all channel counts are final: width multiplier and rounding are already applied.

    Attributes:
        stem_size: channels of the stem.
        hidden_sizes: output channels of each block.
        inner_sizes: channels inside each block.
        strides: of each block.
        num_features: channels of the last convolution.
        expand_first: the first block has an expanding convolution too.
        same_padding: pad like TensorFlow's SAME; otherwise symmetrically.
        batch_norm_eps: added to each variance.
        batch_norm_momentum: decay of the running statistics, as in Flax.
        drop_path_rate: stochastic depth during training; block i of n has the rate ``drop_path_rate * i / n``.
    """

    stem_size: int
    hidden_sizes: tuple[int, ...]
    inner_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    num_features: int = 1280
    expand_first: bool = False
    same_padding: bool = False
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.9
    drop_path_rate: float = 0.0

    def conv_norm(self, features: int, **options: Any) -> ConvNorm:
        """A ConvNorm with this network's padding and batch normalization."""
        return ConvNorm(
            features,
            same=self.same_padding,
            epsilon=self.batch_norm_eps,
            momentum=self.batch_norm_momentum,
            **options,
        )


class InvertedResidual(nn.Module):
    """Expanding, depthwise and projecting convolutions.

    [N, H, W, C] to [N, H / stride, W / stride, hidden_sizes[index]].

    Attributes:
        index: of the block in the network.
    """

    config: MobileNetV2Config
    index: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config, i = self.config, self.index
        inner, stride = config.inner_sizes[i], config.strides[i]
        conv = partial(config.conv_norm, dtype=self.dtype)
        self.expands = i > 0 or config.expand_first
        if self.expands:
            self.expand = conv(inner)
        self.depthwise = conv(inner, kernel=3, stride=stride, groups=inner)
        self.project = conv(config.hidden_sizes[i])
        # The first block never has a shortcut, even where its widths would allow one.
        self.has_shortcut = i > 0 and stride == 1 and config.hidden_sizes[i - 1] == config.hidden_sizes[i]
        self.drop_path = DropPath(config.drop_path_rate * i / len(config.hidden_sizes))

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        branch = jax.nn.relu6(self.expand(x, train)) if self.expands else x
        branch = jax.nn.relu6(self.depthwise(branch, train))
        branch = self.project(branch, train)
        return x + self.drop_path(branch, deterministic=not train) if self.has_shortcut else branch


class MobileNetV2Module(nn.Module):
    """float32 [N, H, W, 3] -> BackboneOutput of the feature map [N, H / 32, W / 32, num_features] and its mean."""

    depth_order: ClassVar[DepthOrder] = DepthOrder(stem=r"stem/.*", blocks=r"blocks_(\d+)/.*", top=r"top/.*")

    config: MobileNetV2Config
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        block = rematerialized(InvertedResidual, self.remat, static=(2,))
        self.stem = config.conv_norm(config.stem_size, kernel=3, stride=2, dtype=self.dtype)
        self.blocks = [block(config, i, dtype=self.dtype) for i in range(len(config.hidden_sizes))]
        self.top = config.conv_norm(config.num_features, dtype=self.dtype)

    def __call__(self, pixel_values: jax.Array, train: bool = False) -> BackboneOutput:
        x = jax.nn.relu6(self.stem(pixel_values, train))
        for block in self.blocks:
            x = block(x, train)
        x = jax.nn.relu6(self.top(x, train))
        return BackboneOutput(last_hidden_state=x, pooler_output=x.mean(axis=(1, 2)))


# Table 2 of the paper: channels, blocks and stride of each stage.
_STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


def _divisible(size: float, divisor: int = 8, minimum: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``size`` that is at least ``minimum`` and at least 90% of ``size``."""
    rounded = max(minimum, int(size + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * size else rounded


def _sizes(
    stem_size: int, scaled: Callable[[int], int], expanded: Callable[[int], int], depths: tuple[int, ...]
) -> dict[str, Any]:
    """The fields of a MobileNetV2Config that hold the sizes of all blocks.

    Args:
        stem_size: channels of the stem.
        scaled: the paper's channels -> this network's.
        expanded: input channels of a block -> channels inside it.
        depths: number of blocks in each stage.
    """
    hidden = [scaled(width) for (width, _, _), depth in zip(_STAGES, depths, strict=True) for _ in range(depth)]
    strides = [1 if i else first for (_, _, first), depth in zip(_STAGES, depths, strict=True) for i in range(depth)]
    return {
        "stem_size": stem_size,
        "hidden_sizes": tuple(hidden),
        "inner_sizes": (stem_size, *(expanded(width) for width in hidden[:-1])),
        "strides": tuple(strides),
    }


def _transformers_names() -> tuple[Row, ...]:
    def rows(name: str, path: str) -> tuple[Row, ...]:
        name = rf"(?:mobilenet_v2\.)?{name}"
        return conv_norm_names(rf"{name}\.convolution", rf"{name}\.normalization", path)

    # transformers' stem contains the first block; layer i is block i + 1.
    blocks = {"conv_stem": "blocks_0", **{rf"layer\.{i}": f"blocks_{i + 1}" for i in range(16)}}
    parts = {"expand_1x1": "expand", "conv_3x3": "depthwise", "reduce_1x1": "project"}
    return (
        *rows(r"conv_stem\.first_conv", "stem"),
        *(
            row
            for b, block in blocks.items()
            for p, part in parts.items()
            for row in rows(rf"{b}\.{p}", f"{block}.{part}")
        ),
        *rows("conv_1x1", "top"),
        Drop(r"classifier\..*"),
    )


def _timm_names(depths: tuple[int, ...]) -> tuple[Row, ...]:
    rows = [*conv_norm_names("conv_stem", "bn1", "stem"), *conv_norm_names("conv_head", "bn2", "top")]
    index = 0
    for stage, depth in enumerate(depths):
        convs = ["pw", "dw", "pwl"] if stage > 0 else ["dw", "pw"]
        parts = ["expand", "depthwise", "project"][-len(convs) :]
        for i in range(depth):
            block = rf"blocks\.{stage}\.{i}"
            for j, (conv, part) in enumerate(zip(convs, parts, strict=True), start=1):
                rows += conv_norm_names(rf"{block}\.conv_{conv}", rf"{block}\.bn{j}", f"blocks_{index}.{part}")
            index += 1
    return (*rows, Drop(r"classifier\..*"))


def _read_transformers(config: dict[str, Any], names: Collection[str]) -> Reading:
    parsed = parse_transformers("MobileNetV2Config", config)
    require_supported(vars(parsed), {"output_stride": 32, "hidden_act": "relu6"})

    def divisible(size: float) -> int:
        return _divisible(round(size), parsed.depth_divisible_by, parsed.min_depth)

    def scaled(width: int) -> int:
        return divisible(width * parsed.depth_multiplier)

    module_config = MobileNetV2Config(
        **_sizes(
            scaled(32),
            scaled,
            lambda width: divisible(width * parsed.expand_ratio),
            tuple(depth for _, depth, _ in _STAGES),
        ),
        num_features=1280 if parsed.finegrained_output and parsed.depth_multiplier < 1 else scaled(1280),
        expand_first=not parsed.first_layer_is_expansion,
        same_padding=parsed.tf_padding,
        batch_norm_eps=parsed.layer_norm_eps,
        # transformers passes TensorFlow's decay of 0.997 to PyTorch as the momentum, where it means the opposite:
        # running statistics of little more than the last batch. The weights were trained with the decay.
        batch_norm_momentum=0.997,
    )
    return Reading(module_config, _transformers_names())


# Multipliers of width and depth. Names with a ``d`` do not scale the stem, the depth of the first and last stages, and
# the last convolution.
_TIMM_SIZES = {
    "035": (0.35, 1.0),
    "050": (0.5, 1.0),
    "075": (0.75, 1.0),
    "100": (1.0, 1.0),
    "140": (1.4, 1.0),
    "110d": (1.1, 1.2),
    "120d": (1.2, 1.4),
}
_TIMM_DEFAULTS = {"bn_eps": 1e-5, "bn_momentum": 0.1, "drop_path_rate": 0.0}
_TIMM_SUPPORTED = {"output_stride": 32, "global_pool": "avg", "pad_type": "", "act_layer": "relu6"}
_TIMM_IGNORED = {"drop_rate"}  # in front of the classifier


def _read_timm(config: dict[str, Any], names: Collection[str]) -> Reading:
    args = timm_arguments(config, {**_TIMM_DEFAULTS, **_TIMM_SUPPORTED}, _TIMM_IGNORED)
    require_supported(args, _TIMM_SUPPORTED)
    size = config["architecture"].removeprefix("mobilenetv2_")
    width, depth = _TIMM_SIZES[size]
    fixed_ends = size.endswith("d")

    def scaled(channels: int) -> int:
        return _divisible(channels * width)

    depths = (1, *(math.ceil(blocks * depth) for _, blocks, _ in _STAGES[1:-1]), 1)
    module_config = MobileNetV2Config(
        **_sizes(32 if fixed_ends else scaled(32), scaled, lambda channels: 6 * channels, depths),
        num_features=1280 if fixed_ends else max(1280, scaled(1280)),
        batch_norm_eps=args["bn_eps"],
        batch_norm_momentum=1 - args["bn_momentum"],
        drop_path_rate=args["drop_path_rate"],
    )
    return Reading(module_config, _timm_names(depths))


FAMILY = Family(
    name="mobilenet_v2",
    title="MobileNetV2",
    module=MobileNetV2Module,
    config=MobileNetV2Config,
    license="Apache-2.0",
    readers=(
        Reader(
            "transformers",
            "mobilenet_v2",
            _read_transformers,
            "MobileNetV2",
            head="classifier",
            verified=("features", "other image sizes", "logits"),
        ),
        Reader(
            "timm", rf"mobilenetv2_({'|'.join(_TIMM_SIZES)})", _read_timm, label="mobilenetv2_*", verified=("features",)
        ),
    ),
)
