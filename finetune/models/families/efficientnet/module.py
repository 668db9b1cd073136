"""The network that EfficientNet, MobileNetV3 and MobileNetV4 share: a stem, one list of blocks, a top."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.errors import ModelError
from finetune.models.depth import DepthOrder
from finetune.models.layers.base import ACTIVATIONS, BackboneOutput, DropPath, rematerialized
from finetune.models.layers.convolution import ConvNorm, SqueezeExcite, he_init

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    **ACTIVATIONS,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
    "hardswish": jax.nn.hard_swish,
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
}


def _activation(name: str) -> Callable[[jax.Array], jax.Array]:
    if name not in _ACTIVATIONS:
        raise ModelError(f"hidden_act: unknown activation {name!r}; supported: {', '.join(sorted(_ACTIVATIONS))}")
    return _ACTIVATIONS[name]


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One block. Its steps, in this order, are there or not.

    A kernel is the edge of a square; 0 leaves the step out. The stride is that of the inner depthwise convolution;
    without one, of the first; without both, of the expanding convolution.

    Attributes:
        input_size, hidden_size: channels of input and output.
        inner_size: channels between expansion and projection.
        stride: 1 or 2.
        first_depthwise: kernel of a depthwise convolution on the input, without an activation (MobileNetV4).
        expand: kernel of the convolution to ``inner_size`` channels; 1 in an inverted residual, larger in a fused one.
        depthwise: kernel of the depthwise convolution on ``inner_size`` channels.
        squeezed: width inside squeeze-and-excitation; 0 for none.
        project: a 1x1 convolution to ``hidden_size`` channels, without an activation; without it the block is a plain
            convolution.
        shortcut: add the input.
        hidden_act: after expansion and inner depthwise convolution.
        symmetric: pad a strided convolution alike on all sides, whatever the network's padding.
    """

    input_size: int
    hidden_size: int
    inner_size: int
    stride: int = 1
    first_depthwise: int = 0
    expand: int = 0
    depthwise: int = 0
    squeezed: int = 0
    project: bool = True
    shortcut: bool = False
    hidden_act: str = "silu"
    symmetric: bool = False


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig:
    """Sizes and variants; all channel counts are final: multipliers of width and depth are already applied.

    Attributes:
        stem_size: channels of the stem.
        blocks: from input to output.
        num_features: channels of the top.
        top: a convolution with BatchNorm before the mean over positions; or after it a dense layer, with a bias or
            with BatchNorm or with neither.
        hidden_act: in stem and top.
        squeeze_act: inside squeeze-and-excitation; empty for the block's own.
        squeeze_gate: at its end.
        padding: of convolutions with a stride: as PyTorch models do, as TensorFlow's SAME, or as SAME for even sizes.
        batch_norm_eps: added to each variance.
        batch_norm_momentum: decay of the running statistics, as in Flax.
        drop_path_rate: stochastic depth during training; block i of n has the rate ``drop_path_rate * i / n``.
    """

    stem_size: int
    blocks: tuple[BlockConfig, ...]
    num_features: int = 1280
    top: Literal["convolution", "dense", "dense without bias", "dense with norm"] = "convolution"
    hidden_act: str = "silu"
    squeeze_act: str = ""
    squeeze_gate: str = "sigmoid"
    padding: Literal["symmetric", "same", "even"] = "symmetric"
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.9
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        # from a bundle they come as dictionaries
        blocks = tuple(BlockConfig(**block) if isinstance(block, dict) else block for block in self.blocks)
        object.__setattr__(self, "blocks", blocks)
        for name in {self.hidden_act, self.squeeze_gate, *(block.hidden_act for block in blocks)}:
            _activation(name)

    def conv_norm(self, features: int, stride: int = 1, symmetric: bool = False, **options: Any) -> ConvNorm:
        """A ConvNorm with this network's padding and batch normalization."""
        return ConvNorm(
            features,
            stride=stride,
            same=self.padding == "same" and not symmetric,
            even=self.padding == "even" and not symmetric and stride > 1,
            epsilon=self.batch_norm_eps,
            momentum=self.batch_norm_momentum,
            **options,
        )


class EfficientNetBlock(nn.Module):
    """Inverted residual, fused or universal, or a plain convolution, as its configuration says.

    [N, H, W, C] to [N, H / stride, W / stride, hidden_size].

    Attributes:
        index: of the block in the network.
    """

    config: EfficientNetConfig
    index: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config, block = self.config, self.config.blocks[self.index]
        self.block, self.act = block, _activation(block.hidden_act)
        conv = partial(config.conv_norm, symmetric=block.symmetric, dtype=self.dtype)
        inner = block.inner_size
        if block.first_depthwise:
            stride = 1 if block.depthwise else block.stride
            self.first_depthwise = conv(block.input_size, stride, kernel=block.first_depthwise, groups=block.input_size)
        if block.expand:
            stride = 1 if block.depthwise or block.first_depthwise else block.stride
            self.expand = conv(inner, stride, kernel=block.expand)
        if block.depthwise:
            self.depthwise = conv(inner, block.stride, kernel=block.depthwise, groups=inner)
        if block.squeezed:
            act = _activation(config.squeeze_act or block.hidden_act)
            self.squeeze_excite = SqueezeExcite(
                inner, block.squeezed, act, _activation(config.squeeze_gate), dtype=self.dtype
            )
        if block.project:
            self.project = conv(block.hidden_size)
        self.drop_path = DropPath(config.drop_path_rate * self.index / len(config.blocks))

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        block, branch = self.block, x
        if block.first_depthwise:
            branch = self.first_depthwise(branch, train)
        if block.expand:
            branch = self.act(self.expand(branch, train))
        if block.depthwise:
            branch = self.act(self.depthwise(branch, train))
        if block.squeezed:
            branch = self.squeeze_excite(branch)
        if block.project:
            branch = self.project(branch, train)
        return x + self.drop_path(branch, deterministic=not train) if block.shortcut else branch


class EfficientNetModule(nn.Module):
    """float32 [N, H, W, 3] -> BackboneOutput of a feature map [N, H / 32, W / 32, C] and features [N, num_features].

    The map is the one whose mean over positions is taken: after the top where that is a convolution, and before it
    otherwise.
    """

    depth_order: ClassVar[DepthOrder] = DepthOrder(stem=r"stem/.*", blocks=r"blocks_(\d+)/.*", top=r"top/.*")

    config: EfficientNetConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        block = rematerialized(EfficientNetBlock, self.remat, static=(2,))
        self.act = _activation(config.hidden_act)
        self.stem = config.conv_norm(config.stem_size, 2, kernel=3, dtype=self.dtype)
        self.blocks = [block(config, i, dtype=self.dtype) for i in range(len(config.blocks))]
        self.top: Any = (
            config.conv_norm(config.num_features, dtype=self.dtype)
            if config.top in ("convolution", "dense with norm")
            else nn.Dense(config.num_features, config.top == "dense", dtype=self.dtype, kernel_init=he_init)
        )

    def __call__(self, pixel_values: jax.Array, train: bool = False) -> BackboneOutput:
        x = self.act(self.stem(pixel_values, train))
        for block in self.blocks:
            x = block(x, train)
        if self.config.top == "convolution":
            x = self.act(self.top(x, train))
            return BackboneOutput(last_hidden_state=x, pooler_output=x.mean(axis=(1, 2)))
        pooled = x.mean(axis=(1, 2), keepdims=True)
        pooled = self.top(pooled, train) if self.config.top == "dense with norm" else self.top(pooled)
        return BackboneOutput(last_hidden_state=x, pooler_output=self.act(pooled)[:, 0, 0])
