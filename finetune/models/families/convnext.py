"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545), also of DINOv3 (Siméoni et al. 2025, arXiv:2508.10104), and ConvNeXt V2
(Woo et al. 2023, arXiv:2301.00808).
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
from finetune.models.layers.convolution import convolve, require_supported
from finetune.weights.names import (
    Drop,
    Rename,
    Row,
    convolution,
    flat,
    linear,
    pointwise,
    weight_and_bias,
)


@dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
    """Sizes and variants.

    Attributes:
        depths: number of blocks in each stage.
        hidden_sizes: channels of each stage.
        patch_size: edge of the stem's patches, in pixels.
        layer_scale_init_value: initial value of the layer scale (V1); None for no layer scale.
        response_norm: the blocks have global response normalization (V2).
        layer_norm_eps: of every LayerNorm but the last.
        pooled_norm_eps: of the last LayerNorm, after the pooling.
        drop_path_rate: stochastic depth of the last block during training; it grows linearly from 0 at the first.
        tokens: ``last_hidden_state`` is a sequence (DINOv3).
    """

    depths: tuple[int, ...]
    hidden_sizes: tuple[int, ...]
    patch_size: int = 4
    hidden_act: str = "gelu"
    layer_scale_init_value: float | None = None
    response_norm: bool = False
    layer_norm_eps: float = 1e-6
    pooled_norm_eps: float = 1e-6
    drop_path_rate: float = 0.0
    tokens: bool = False

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.hidden_sizes):
            raise ModelError(f"depths {self.depths} and hidden_sizes {self.hidden_sizes} differ in length")

    @property
    def num_features(self) -> int:
        return self.hidden_sizes[-1]


_INIT = nn.initializers.truncated_normal(0.02)
# The fast variance, E[x^2] - E[x]^2, loses precision where the mean is large, as in a trained residual stream.
_LayerNorm = partial(nn.LayerNorm, use_fast_variance=False)


def _patch_embedding(features: int, size: int, dtype: jnp.dtype) -> nn.Conv:
    """A dense layer on each ``size`` x ``size`` patch, [N, H, W, C] to [N, H // size, W // size, features]."""
    window = (size, size)
    return nn.Conv(features, window, strides=window, padding="VALID", dtype=dtype, kernel_init=_INIT)


class GlobalResponseNorm(nn.Module):
    """Scales each channel by its norm over the image, relative to the other channels' (ConvNeXt V2, section 3.2).

    [N, H, W, C] to the same shape; computes in float32.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.scale = self.param("scale", nn.initializers.zeros, (self.features,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: jax.Array) -> jax.Array:
        energy = jnp.square(x.astype(jnp.float32)).sum(axis=(1, 2), keepdims=True)
        # sqrt has no finite gradient at 0, which a channel that GELU switched off has; PyTorch's is 0.
        response = jnp.where(energy > 0, jnp.sqrt(jnp.where(energy > 0, energy, 1)), 0)
        share = response / (response.mean(axis=-1, keepdims=True) + 1e-6)
        return (x * (1 + self.scale * share) + self.bias).astype(self.dtype)


class ConvNeXtBlock(nn.Module):
    """A 7x7 depthwise convolution and an MLP with a shortcut around both: [N, H, W, C] to the same shape.

    Attributes:
        features: C.
        drop_path_rate: stochastic depth of this block during training.
    """

    config: ConvNeXtConfig
    features: int
    drop_path_rate: float
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config, width = self.config, self.features
        self.depthwise = nn.Conv(
            width,
            (7, 7),
            padding=3,
            feature_group_count=width,
            conv_general_dilated=convolve,
            dtype=self.dtype,
            kernel_init=_INIT,
        )
        self.norm = _LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype)
        self.fc1 = nn.Dense(4 * width, dtype=self.dtype, kernel_init=_INIT)
        if config.response_norm:
            self.response_norm = GlobalResponseNorm(4 * width, dtype=self.dtype)
        self.fc2 = nn.Dense(width, dtype=self.dtype, kernel_init=_INIT)
        if config.layer_scale_init_value is not None:
            init = nn.initializers.constant(config.layer_scale_init_value)
            self.layer_scale = self.param("layer_scale", init, (width,))
        self.drop_path = DropPath(self.drop_path_rate)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        branch = self.fc1(self.norm(self.depthwise(x)))
        branch = activation(self.config.hidden_act)(branch)
        if self.config.response_norm:
            branch = self.response_norm(branch)
        branch = self.fc2(branch)
        if self.config.layer_scale_init_value is not None:
            branch = branch * self.layer_scale.astype(self.dtype)
        return x + self.drop_path(branch, deterministic=not train)


class ConvNeXtStem(nn.Module):
    """A patch embedding, then a LayerNorm: [N, H, W, 3] to [N, H // patch_size, W // patch_size, hidden_sizes[0]]."""

    config: ConvNeXtConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.conv = _patch_embedding(self.config.hidden_sizes[0], self.config.patch_size, self.dtype)
        self.norm = _LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class ConvNeXtDownsample(nn.Module):
    """A LayerNorm, then a 2x2 patch embedding: [N, H, W, C] to [N, H // 2, W // 2, features]."""

    config: ConvNeXtConfig
    features: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.norm = _LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype)
        self.conv = _patch_embedding(self.features, 2, self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.norm(x))


class ConvNeXtStage(nn.Module):
    """The blocks at one resolution; every stage but the first begins with a downsampling."""

    config: ConvNeXtConfig
    stage: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config, width = self.config, self.config.hidden_sizes[self.stage]
        if self.stage > 0:
            self.downsample = ConvNeXtDownsample(config, width, dtype=self.dtype)
        before, total = sum(config.depths[: self.stage]), sum(config.depths)
        block = rematerialized(ConvNeXtBlock, self.remat, static=(2,))
        self.blocks = [
            block(config, width, config.drop_path_rate * (before + i) / max(total - 1, 1), dtype=self.dtype)
            for i in range(config.depths[self.stage])
        ]

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.stage > 0:
            x = self.downsample(x)
        for block in self.blocks:
            x = block(x, train)
        return x


class ConvNeXtModule(nn.Module):
    """float32 [N, H, W, 3] -> BackboneOutput of the last stage's feature map [N, H / 32, W / 32, C], which is not
    normalized, and the LayerNorm of its mean [N, C].

    With ``tokens``, the first is [N, 1 + H / 32 * W / 32, C] instead: the mean and all positions, normalized.
    """

    # the downsampling layer counts as part of the block after it
    depth_order: ClassVar[DepthOrder] = DepthOrder(
        stem=r"stem/.*", blocks=r"stages_(\d+)/(?:downsample|blocks_(\d+))/.*", top=r"norm/.*"
    )

    config: ConvNeXtConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        self.stem = ConvNeXtStem(config, dtype=self.dtype)
        self.stages = [ConvNeXtStage(config, i, dtype=self.dtype, remat=self.remat) for i in range(len(config.depths))]
        self.norm = _LayerNorm(epsilon=config.pooled_norm_eps, dtype=self.dtype)

    def __call__(self, pixel_values: jax.Array, train: bool = False) -> BackboneOutput:
        x = self.stem(pixel_values)
        for stage in self.stages:
            x = stage(x, train)
        pooled = x.mean(axis=(1, 2))
        if self.config.tokens:
            tokens = x.reshape(x.shape[0], -1, x.shape[-1])
            states = self.norm(jnp.concatenate([pooled[:, None], tokens], axis=1))
            return BackboneOutput(last_hidden_state=states, pooler_output=states[:, 0])
        return BackboneOutput(last_hidden_state=x, pooler_output=self.norm(pooled))


_STAGE, _BLOCK = r"stages_\1", r"stages_\1.blocks_\2"


def _transformers_names() -> tuple[Row, ...]:
    root = r"(?:convnext(?:v2)?\.)?"
    stage = rf"{root}encoder\.stages\.(\d+)"
    block = rf"{stage}\.layers\.(\d+)"
    return (
        *weight_and_bias(rf"{root}embeddings\.patch_embeddings", "stem.conv", "kernel", convolution),
        *weight_and_bias(rf"{root}embeddings\.layernorm", "stem.norm", "scale"),
        *weight_and_bias(rf"{stage}\.downsampling_layer\.0", f"{_STAGE}.downsample.norm", "scale"),
        *weight_and_bias(rf"{stage}\.downsampling_layer\.1", f"{_STAGE}.downsample.conv", "kernel", convolution),
        *weight_and_bias(rf"{block}\.dwconv", f"{_BLOCK}.depthwise", "kernel", convolution),
        *weight_and_bias(rf"{block}\.layernorm", f"{_BLOCK}.norm", "scale"),
        *weight_and_bias(rf"{block}\.pwconv1", f"{_BLOCK}.fc1", "kernel", linear),
        *weight_and_bias(rf"{block}\.grn", f"{_BLOCK}.response_norm", "scale", flat),
        *weight_and_bias(rf"{block}\.pwconv2", f"{_BLOCK}.fc2", "kernel", linear),
        Rename(rf"{block}\.layer_scale_parameter", f"{_BLOCK}.layer_scale"),
        *weight_and_bias(rf"{root}layernorm", "norm", "scale"),
        Drop(r"classifier\..*"),
    )


def _dinov3_names() -> tuple[Row, ...]:
    stage = r"(?:model\.)?stages\.(\d+)"
    down, block = rf"{stage}\.downsample_layers", rf"{stage}\.layers\.(\d+)"
    first = down.replace(r"(\d+)", "0")
    return (
        *weight_and_bias(rf"{first}\.0", "stem.conv", "kernel", convolution),
        *weight_and_bias(rf"{first}\.1", "stem.norm", "scale"),
        *weight_and_bias(rf"{down}\.0", f"{_STAGE}.downsample.norm", "scale"),
        *weight_and_bias(rf"{down}\.1", f"{_STAGE}.downsample.conv", "kernel", convolution),
        *weight_and_bias(rf"{block}\.depthwise_conv", f"{_BLOCK}.depthwise", "kernel", convolution),
        *weight_and_bias(rf"{block}\.layer_norm", f"{_BLOCK}.norm", "scale"),
        *weight_and_bias(rf"{block}\.pointwise_conv1", f"{_BLOCK}.fc1", "kernel", linear),
        *weight_and_bias(rf"{block}\.pointwise_conv2", f"{_BLOCK}.fc2", "kernel", linear),
        Rename(rf"{block}\.gamma", f"{_BLOCK}.layer_scale"),
        *weight_and_bias("layer_norm", "norm", "scale"),
    )


def _timm_names() -> tuple[Row, ...]:
    stage = r"stages\.(\d+)"
    block = rf"{stage}\.blocks\.(\d+)"
    return (
        *weight_and_bias(r"stem\.0", "stem.conv", "kernel", convolution),
        *weight_and_bias(r"stem\.1", "stem.norm", "scale"),
        *weight_and_bias(rf"{stage}\.downsample\.0", f"{_STAGE}.downsample.norm", "scale"),
        *weight_and_bias(rf"{stage}\.downsample\.1", f"{_STAGE}.downsample.conv", "kernel", convolution),
        *weight_and_bias(rf"{block}\.conv_dw", f"{_BLOCK}.depthwise", "kernel", convolution),
        *weight_and_bias(rf"{block}\.norm", f"{_BLOCK}.norm", "scale"),
        *weight_and_bias(rf"{block}\.mlp\.fc1", f"{_BLOCK}.fc1", "kernel", pointwise),
        *weight_and_bias(rf"{block}\.mlp\.grn", f"{_BLOCK}.response_norm", "scale"),
        *weight_and_bias(rf"{block}\.mlp\.fc2", f"{_BLOCK}.fc2", "kernel", pointwise),
        Rename(rf"{block}\.gamma", f"{_BLOCK}.layer_scale"),
        *weight_and_bias(r"head\.norm", "norm", "scale"),
        Drop(r"head\.fc\..*"),
    )


def _read_transformers(config: dict[str, Any], names: Collection[str]) -> Reading:
    v2 = config["model_type"] == "convnextv2"
    parsed = parse_transformers("ConvNextV2Config" if v2 else "ConvNextConfig", config)
    require_supported(vars(parsed), {"num_stages": len(parsed.depths)})
    if not isinstance(parsed.patch_size, int):
        raise ModelError(f"patch_size: only a single number is supported; received {parsed.patch_size!r}")
    scale = None if v2 else parsed.layer_scale_init_value
    module_config = ConvNeXtConfig(
        depths=tuple(parsed.depths),
        hidden_sizes=tuple(parsed.hidden_sizes),
        patch_size=parsed.patch_size,
        hidden_act=parsed.hidden_act,
        layer_scale_init_value=scale if scale and scale > 0 else None,
        response_norm=v2,
        pooled_norm_eps=parsed.layer_norm_eps,  # the others are always 1e-6
        drop_path_rate=parsed.drop_path_rate,
    )
    return Reading(module_config, _transformers_names())


def _read_dinov3(config: dict[str, Any], names: Collection[str]) -> Reading:
    parsed = parse_transformers("DINOv3ConvNextConfig", config)
    module_config = ConvNeXtConfig(
        depths=tuple(parsed.depths),
        hidden_sizes=tuple(parsed.hidden_sizes),
        hidden_act=parsed.hidden_act,
        layer_scale_init_value=parsed.layer_scale_init_value,
        layer_norm_eps=parsed.layer_norm_eps,
        pooled_norm_eps=parsed.layer_norm_eps,
        drop_path_rate=parsed.drop_path_rate,
        tokens=True,
    )
    return Reading(module_config, _dinov3_names())


# Blocks of each stage, and channels of the first stage; they double from stage to stage.
_TIMM_SIZES = {
    "atto": ((2, 2, 6, 2), 40),
    "femto": ((2, 2, 6, 2), 48),
    "pico": ((2, 2, 6, 2), 64),
    "nano": ((2, 2, 8, 2), 80),
    "tiny": ((3, 3, 9, 3), 96),
    "small": ((3, 3, 27, 3), 96),
    "base": ((3, 3, 27, 3), 128),
    "large": ((3, 3, 27, 3), 192),
    "xlarge": ((3, 3, 27, 3), 256),
    "xxlarge": ((3, 4, 30, 3), 384),
    "huge": ((3, 3, 27, 3), 352),
}
_TIMM_ARCHITECTURES = (
    r"convnext(?:_(?P<v1>atto|femto|pico|nano|tiny|small|base|large|xlarge|xxlarge)"
    r"|v2_(?P<v2>atto|femto|pico|nano|tiny|small|base|large|huge))"
)
_TIMM_SUPPORTED = {
    "output_stride": 32,
    "global_pool": "avg",
    "kernel_sizes": 7,
    "stem_type": "patch",
    "patch_size": 4,
    "head_norm_first": False,
    "head_hidden_size": None,
    "conv_bias": True,
    "norm_layer": None,
    "act_layer": "gelu",
}
# ``conv_mlp`` only decides how the MLP's kernels are stored; the others affect initial weights and the classifier.
_TIMM_IGNORED = {"conv_mlp", "head_init_scale", "drop_rate"}


def _timm_defaults(name: re.Match[str]) -> dict[str, Any]:
    """The arguments that timm's model function of that name passes to its ConvNeXt class."""
    depths, width = _TIMM_SIZES[name["v1"] or name["v2"]]
    return {
        "depths": depths,
        "dims": (width, 2 * width, 4 * width, 8 * width),
        "ls_init_value": 1e-6 if name["v1"] else None,
        "use_grn": bool(name["v2"]),
        "norm_eps": 1e-5 if name["v1"] == "xxlarge" else 1e-6,
        "drop_path_rate": 0.0,
    }


def _read_timm(config: dict[str, Any], names: Collection[str]) -> Reading:
    name = re.fullmatch(_TIMM_ARCHITECTURES, config["architecture"])
    assert name is not None  # the reader's ``model_types``
    args = timm_arguments(config, {**_timm_defaults(name), **_TIMM_SUPPORTED}, _TIMM_IGNORED)
    require_supported(args, _TIMM_SUPPORTED)
    epsilon = args["norm_eps"] or 1e-6  # None means the default of timm's LayerNorm
    module_config = ConvNeXtConfig(
        depths=tuple(args["depths"]),
        hidden_sizes=tuple(args["dims"]),
        layer_scale_init_value=args["ls_init_value"],
        response_norm=args["use_grn"],
        layer_norm_eps=epsilon,
        pooled_norm_eps=epsilon,
        drop_path_rate=args["drop_path_rate"],
    )
    return Reading(module_config, _timm_names())


FAMILY = Family(
    name="convnext",
    title="ConvNeXt",
    module=ConvNeXtModule,
    config=ConvNeXtConfig,
    license="Apache-2.0; V2 CC-BY-NC-4.0",
    readers=(
        Reader(
            "transformers",
            "convnext|convnextv2",
            _read_transformers,
            "ConvNext",
            head="classifier",
            label="convnext, convnextv2",
            verified=("features", "logits"),
        ),
        Reader("transformers", "dinov3_convnext", _read_dinov3, "DINOv3ViT", verified=("features",)),
        Reader(
            "timm",
            _TIMM_ARCHITECTURES,
            _read_timm,
            head=r"head\.fc",
            label="convnext_*, convnextv2_*",
            verified=("features", "logits"),
        ),
    ),
)
