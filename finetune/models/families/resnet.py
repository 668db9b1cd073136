"""ResNet, ResNeXt and Wide ResNet.

"Deep Residual Learning for Image Recognition" (He et al. 2015, arXiv:1512.03385), "Aggregated Residual
Transformations" (Xie et al. 2016, arXiv:1611.05431), "Wide Residual Networks" (Zagoruyko & Komodakis 2016,
arXiv:1605.07146) and the ResNet-D of "Bag of Tricks" (He et al. 2018, arXiv:1812.01187).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.errors import ModelError
from finetune.models.depth import DepthOrder
from finetune.models.family import Family, Reader, Reading, parse_transformers, timm_arguments
from finetune.models.layers.base import BackboneOutput, DropPath, activation, rematerialized
from finetune.models.layers.convolution import ConvNorm, conv_norm_names, require_supported
from finetune.weights.names import Drop, Row


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Sizes and variants.

    Attributes:
        depths: number of blocks in each stage.
        hidden_sizes: output channels of each stage.
        inner_sizes: channels inside the blocks of each stage.
        stem_sizes: channels of the stem's convolutions: a single one is 7x7, several are 3x3 (ResNet-D).
        bottleneck: blocks are 1x1, 3x3, 1x1 convolutions; otherwise 3x3, 3x3.
        groups: of the 3x3 convolution in a bottleneck (ResNeXt's cardinality).
        hidden_act: after the stem and after each block; inside a block it is always ReLU.
        downsample_in_first_stage: the first stage halves the resolution too.
        downsample_in_bottleneck: the stride is in a bottleneck's first convolution, as in the paper; otherwise in its
            3x3 convolution.
        average_shortcut: a shortcut averages 2x2 pixels before its convolution, which then has no stride (ResNet-D).
        drop_path_rate: stochastic depth of the last block during training; it grows linearly from 0 at the first.
    """

    depths: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    inner_sizes: tuple[int, ...]
    stem_sizes: tuple[int, ...] = (64,)
    bottleneck: bool = True
    groups: int = 1
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    average_shortcut: bool = False
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.depths) == len(self.hidden_sizes) == len(self.inner_sizes):
            raise ModelError(f"depths {self.depths} and hidden_sizes {self.hidden_sizes} differ in length")

    @property
    def num_features(self) -> int:
        return self.hidden_sizes[-1]


class ResNetBlock(nn.Module):
    """Convolutions with a shortcut around them: [N, H, W, C] to [N, H / stride, W / stride, hidden_sizes[stage]].

    Attributes:
        stage, index: of the block in the network; the first block of a stage may halve the resolution.
    """

    config: ResNetConfig
    stage: int
    index: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config, stage, first = self.config, self.stage, self.index == 0
        self.stride = 2 if first and (stage > 0 or config.downsample_in_first_stage) else 1
        width, inner = config.hidden_sizes[stage], config.inner_sizes[stage]
        conv = partial(ConvNorm, dtype=self.dtype)
        if config.bottleneck:
            early, late = (self.stride, 1) if config.downsample_in_bottleneck else (1, self.stride)
            self.convs = [conv(inner, 1, early), conv(inner, 3, late, config.groups), conv(width)]
        else:
            self.convs = [conv(inner, 3, self.stride), conv(width, 3)]
        input_width = (config.stem_sizes[-1], *config.hidden_sizes)[stage]
        self.projects = first and (self.stride > 1 or input_width != width)
        if self.projects:
            self.shortcut = conv(width, stride=1 if config.average_shortcut else self.stride)
        blocks_before = sum(config.depths[:stage]) + self.index
        self.drop_path = DropPath(config.drop_path_rate * blocks_before / max(sum(config.depths) - 1, 1))

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        branch = x
        for conv in self.convs[:-1]:
            branch = jax.nn.relu(conv(branch, train))
        branch = self.drop_path(self.convs[-1](branch, train), deterministic=not train)
        if self.projects:
            if self.config.average_shortcut and self.stride > 1:
                x = _average_2x2(x)
            x = self.shortcut(x, train)
        return activation(self.config.hidden_act)(x + branch)


class ResNetStage(nn.Module):
    """The blocks at one resolution."""

    config: ResNetConfig
    stage: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        depth = self.config.depths[self.stage]
        block = rematerialized(ResNetBlock, self.remat, static=(2,))
        self.blocks = [block(self.config, self.stage, i, dtype=self.dtype) for i in range(depth)]

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for block in self.blocks:
            x = block(x, train)
        return x


class ResNetModule(nn.Module):
    """float32 [N, H, W, 3] -> BackboneOutput of the last feature map [N, H / 32, W / 32, C] and its mean [N, C]."""

    depth_order: ClassVar[DepthOrder] = DepthOrder(stem=r"stem_\d+/.*", blocks=r"stages_(\d+)/blocks_(\d+)/.*")

    config: ResNetConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        kernel = 7 if len(config.stem_sizes) == 1 else 3
        self.stem = [
            ConvNorm(size, kernel, stride=1 if i else 2, dtype=self.dtype) for i, size in enumerate(config.stem_sizes)
        ]
        self.stages = [ResNetStage(config, i, dtype=self.dtype, remat=self.remat) for i in range(len(config.depths))]

    def __call__(self, pixel_values: jax.Array, train: bool = False) -> BackboneOutput:
        x = pixel_values
        for conv in self.stem:
            x = activation(self.config.hidden_act)(conv(x, train))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in self.stages:
            x = stage(x, train)
        return BackboneOutput(last_hidden_state=x, pooler_output=x.mean(axis=(1, 2)))


def _average_2x2(x: jax.Array) -> jax.Array:
    """Means of 2x2 pixels, [N, H, W, C] to [N, ceil(H / 2), ceil(W / 2), C]; at an odd edge of fewer."""
    padding = ((0, x.shape[1] % 2), (0, x.shape[2] % 2))
    return nn.avg_pool(x, (2, 2), strides=(2, 2), padding=padding, count_include_pad=False)


def _transformers_names() -> tuple[Row, ...]:
    def rows(name: str, path: str) -> tuple[Row, ...]:
        name = rf"(?:resnet\.)?{name}"
        return conv_norm_names(rf"{name}\.convolution", rf"{name}\.normalization", path)

    block = r"encoder\.stages\.(\d+)\.layers\.(\d+)"
    return (
        *rows(r"embedder\.embedder", "stem_0"),
        *rows(rf"{block}\.layer\.(\d+)", r"stages_\1.blocks_\2.convs_\3"),
        *rows(rf"{block}\.shortcut", r"stages_\1.blocks_\2.shortcut"),
        Drop(r"classifier\..*"),
    )


def _timm_names(config: ResNetConfig) -> tuple[Row, ...]:
    rows = list(conv_norm_names("conv1", "bn1", f"stem_{len(config.stem_sizes) - 1}"))
    if len(config.stem_sizes) > 1:  # conv1 is a Sequential of convolution, norm and activation; the last norm is bn1
        rows = [
            *conv_norm_names(r"conv1\.0", r"conv1\.1", "stem_0"),
            *conv_norm_names(r"conv1\.3", r"conv1\.4", "stem_1"),
            *conv_norm_names(r"conv1\.6", "bn1", "stem_2"),
        ]
    conv, norm = ("1", "2") if config.average_shortcut else ("0", "1")
    for i in range(len(config.depths)):
        block, path = rf"layer{i + 1}\.(\d+)", rf"stages_{i}.blocks_\1"
        shortcut = rf"{block}\.downsample"
        rows += conv_norm_names(rf"{shortcut}\.{conv}", rf"{shortcut}\.{norm}", f"{path}.shortcut")
        for j in range(3 if config.bottleneck else 2):
            rows += conv_norm_names(rf"{block}\.conv{j + 1}", rf"{block}\.bn{j + 1}", f"{path}.convs_{j}")
    return (*rows, Drop(r"fc\..*"))


def _read_transformers(config: dict[str, Any], names: Collection[str]) -> Reading:
    layer_type = config.get("layer_type", "bottleneck")
    if layer_type not in ("basic", "bottleneck"):
        raise ModelError(f"layer_type: only 'basic' and 'bottleneck' are supported; received {layer_type!r}")
    parsed = parse_transformers("ResNetConfig", config)
    bottleneck = layer_type == "bottleneck"
    module_config = ResNetConfig(
        depths=tuple(parsed.depths),
        hidden_sizes=tuple(parsed.hidden_sizes),
        inner_sizes=tuple(size // 4 if bottleneck else size for size in parsed.hidden_sizes),
        stem_sizes=(parsed.embedding_size,),
        bottleneck=bottleneck,
        hidden_act=parsed.hidden_act,
        downsample_in_first_stage=parsed.downsample_in_first_stage,
        downsample_in_bottleneck=parsed.downsample_in_bottleneck,
    )
    return Reading(module_config, _transformers_names())


_TIMM_ARCHITECTURES = (
    r"(?:resnet(?P<plain>18|26|34|50|101|152|200)(?P<d>d?)"
    r"|wide_resnet(?P<wide>50|101)_2"
    r"|resnext(?P<grouped>50|101)(?P<grouped_d>d?)_(?P<groups>\d+)x(?P<width>\d+)d)"
)
_TIMM_DEPTHS = {
    "18": (2, 2, 2, 2),
    "26": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
    "200": (3, 24, 36, 3),
}
_TIMM_SUPPORTED = {
    "output_stride": 32,
    "global_pool": "avg",
    "block_reduce_first": 1,
    "down_kernel_size": 1,
    "replace_stem_pool": False,
    "drop_block_rate": 0.0,
}
# These affect only initial weights and the classifier.
_TIMM_IGNORED = {"zero_init_last", "drop_rate"}


def _timm_defaults(name: re.Match[str]) -> dict[str, Any]:
    """The arguments that timm's model function of that name passes to its ResNet class."""
    deep = bool(name["d"] or name["grouped_d"])
    return {
        "layers": _TIMM_DEPTHS[name["plain"] or name["wide"] or name["grouped"]],
        "channels": (64, 128, 256, 512),
        "stem_width": 32 if deep else 64,
        "stem_type": "deep" if deep else "",
        "avg_down": deep,
        "cardinality": int(name["groups"] or 1),
        "base_width": int(name["width"] or (128 if name["wide"] else 64)),
        "drop_path_rate": 0.0,
    }


def _read_timm(config: dict[str, Any], names: Collection[str]) -> Reading:
    name = re.fullmatch(_TIMM_ARCHITECTURES, config["architecture"])
    assert name is not None  # the reader's ``model_types``
    args = timm_arguments(config, {**_timm_defaults(name), **_TIMM_SUPPORTED}, _TIMM_IGNORED)
    require_supported(args, _TIMM_SUPPORTED)
    if args["stem_type"] not in ("", "deep"):
        raise ModelError(f"stem_type: only '' and 'deep' are supported; received {args['stem_type']!r}")
    width, channels, bottleneck = args["stem_width"], args["channels"], name["plain"] not in ("18", "34")
    module_config = ResNetConfig(
        depths=tuple(args["layers"]),
        hidden_sizes=tuple(4 * size if bottleneck else size for size in channels),
        inner_sizes=tuple(size * args["base_width"] // 64 * args["cardinality"] for size in channels),
        stem_sizes=(width, width, 2 * width) if args["stem_type"] == "deep" else (64,),
        bottleneck=bottleneck,
        groups=args["cardinality"],
        average_shortcut=args["avg_down"],
        drop_path_rate=args["drop_path_rate"],
    )
    return Reading(module_config, _timm_names(module_config))


FAMILY = Family(
    name="resnet",
    title="ResNet",
    module=ResNetModule,
    config=ResNetConfig,
    license="Apache-2.0",
    readers=(
        Reader(
            "transformers",
            "resnet",
            _read_transformers,
            "ConvNext",
            head=r"classifier\.1",
            verified=("features", "logits", "a training step"),
        ),
        Reader(
            "timm",
            _TIMM_ARCHITECTURES,
            _read_timm,
            head="fc",
            label="resnet*, resnet*d, wide_resnet*, resnext*",
            verified=("features", "other image sizes", "logits"),
        ),
    ),
)
