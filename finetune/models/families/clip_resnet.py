"""The ResNets of CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.4), in open_clip's layout.

Three things differ from a ResNet: a stem of three 3x3 convolutions, strides that average pixels instead of skipping
them ("Making Convolutional Networks Shift-Invariant Again", Zhang 2019, arXiv:1904.11486), and attention in place of
the mean over positions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.errors import ModelError
from finetune.models.depth import DepthOrder
from finetune.models.families.clip import CLIPModule
from finetune.models.families.open_clip import both_towers, options, square
from finetune.models.family import Family, Reader, Reading
from finetune.models.layers.attention import attention
from finetune.models.layers.base import BackboneOutput, rematerialized
from finetune.models.layers.convolution import ConvNorm, conv_norm_names
from finetune.weights.names import Rename, Row, linear, nested, weight_and_bias

_STRIDE = 32  # of the last feature map


@dataclass(frozen=True, kw_only=True)
class ModifiedResNetConfig:
    """Sizes.

    Attributes:
        depths: number of blocks in each stage.
        width: channels of the stem; stage i has 4 * width * 2**i.
        num_heads: of the attention pooling.
        num_features: width of the pooled output, which is the embedding that CLIP compares with text.
        image_size: edge in pixels; the attention pooling has a table of positions for it.
    """

    depths: tuple[int, ...]
    width: int
    num_heads: int
    num_features: int
    image_size: int

    # Where the table of positions is, and how many of its rows belong to no patch; see finetune.models.pretrained.
    position_path: ClassVar[tuple[str, ...]] = ("attention_pool", "position_embedding", "embedding")
    position_prefix: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ModelError(f"width {self.width}: {self.hidden_size} is not a multiple of {self.num_heads} heads")

    @property
    def hidden_size(self) -> int:
        """Channels of the last feature map."""
        return 4 * self.width * 2 ** (len(self.depths) - 1)

    @property
    def patch_size(self) -> int:
        """Pixels that one position of the last feature map stands for."""
        return _STRIDE

    @property
    def grid(self) -> int:
        return self.image_size // _STRIDE


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut: [N, H, W, C] to [N, H / stride, W / stride, 4 * inner].

    Attributes:
        inner: channels between the convolutions.
        stride: 2x2 pixels are averaged after the 3x3 convolution and before the shortcut's, where it is 2.
        projects: the shortcut has a convolution.
    """

    inner: int
    stride: int = 1
    projects: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        conv = partial(ConvNorm, dtype=self.dtype)
        self.convs = [conv(self.inner), conv(self.inner, 3), conv(4 * self.inner)]
        if self.projects:
            self.shortcut = conv(4 * self.inner)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        branch = x
        for conv in self.convs[:-1]:
            branch = jax.nn.relu(conv(branch, train))
        if self.stride > 1:
            branch, x = _average_2x2(branch), _average_2x2(x)
        if self.projects:
            x = self.shortcut(x, train)
        return jax.nn.relu(x + self.convs[-1](branch, train))


class Layer(nn.Module):
    """The blocks at one resolution; the first of them halves it, but for the first layer's."""

    config: ModifiedResNetConfig
    index: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        block = rematerialized(Bottleneck, self.remat, static=(2,))
        inner, stride = self.config.width * 2**self.index, 2 if self.index else 1
        self.blocks = [
            block(inner, 1 if i else stride, projects=i == 0, dtype=self.dtype)
            for i in range(self.config.depths[self.index])
        ]

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for block in self.blocks:
            x = block(x, train)
        return x


class AttentionPool2d(nn.Module):
    """Attention from the mean of all positions to the mean and the positions: [N, H, W, C] -> [N, num_features]."""

    config: ModifiedResNetConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(config.hidden_size**-0.5)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=init)
        self.position_embedding = nn.Embed(
            1 + config.grid**2, config.hidden_size, dtype=self.dtype, embedding_init=init
        )
        self.q_proj, self.k_proj, self.v_proj = (dense(config.hidden_size) for _ in range(3))
        self.out_proj = dense(config.num_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        patches = x.reshape(x.shape[0], -1, x.shape[-1])
        tokens = jnp.concatenate([patches.mean(axis=1, keepdims=True), patches], axis=1)
        tokens = tokens + self.position_embedding(jnp.arange(1 + self.config.grid**2))
        projected = self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens)
        q, k, v = (part.reshape(*part.shape[:2], self.config.num_heads, -1) for part in projected)
        return self.out_proj(attention(q, k, v).reshape(x.shape[0], -1))


class ModifiedResNet(nn.Module):
    """float32 [N, image_size, image_size, 3] -> BackboneOutput of the last feature map [N, grid, grid, C] and the
    embedding [N, num_features].
    """

    depth_order: ClassVar[DepthOrder] = DepthOrder(
        stem=r"stem_\d+/.*", blocks=r"layers_(\d+)/blocks_(\d+)/.*", top=r"attention_pool/.*"
    )

    config: ModifiedResNetConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config, half = self.config, self.config.width // 2
        conv = partial(ConvNorm, kernel=3, dtype=self.dtype)
        self.stem = [conv(half, stride=2), conv(half), conv(config.width)]
        self.layers = [Layer(config, i, dtype=self.dtype, remat=self.remat) for i in range(len(config.depths))]
        self.attention_pool = AttentionPool2d(config, dtype=self.dtype)

    def __call__(self, pixel_values: jax.Array, train: bool = False) -> BackboneOutput:
        x = pixel_values
        for conv in self.stem:
            x = jax.nn.relu(conv(x, train))
        x = _average_2x2(x)
        for layer in self.layers:
            x = layer(x, train)
        return BackboneOutput(last_hidden_state=x, pooler_output=self.attention_pool(x))


def _average_2x2(x: jax.Array) -> jax.Array:
    """Means of 2x2 pixels, [N, H, W, C] to [N, H // 2, W // 2, C]."""
    return nn.avg_pool(x, (2, 2), strides=(2, 2))


def _names(depths: int) -> tuple[Row, ...]:
    rows: list[Row] = []
    for i in range(3):
        rows += conv_norm_names(f"conv{i + 1}", f"bn{i + 1}", f"stem_{i}")
    for i in range(depths):
        block, path = rf"layer{i + 1}\.(\d+)", rf"layers_{i}.blocks_\1"
        rows += conv_norm_names(rf"{block}\.downsample\.0", rf"{block}\.downsample\.1", f"{path}.shortcut")
        for j in range(3):
            rows += conv_norm_names(rf"{block}\.conv{j + 1}", rf"{block}\.bn{j + 1}", f"{path}.convs_{j}")
    return (
        *rows,
        Rename(r"attnpool\.positional_embedding", "attention_pool.position_embedding.embedding"),
        *weight_and_bias(r"attnpool\.([qkv]_proj)", r"attention_pool.\1", "kernel", linear),
        *weight_and_bias(r"attnpool\.c_proj", "attention_pool.out_proj", "kernel", linear),
    )


_DEFAULTS = {"layers": (), "width": 768, "head_width": 64, "image_size": 224}
_WITHOUT_EFFECT = {"mlp_ratio", "patch_size"}


def _read(config: dict[str, Any], names: Collection[str]) -> Reading:
    model = config["model_cfg"]
    vision = options(model["vision_cfg"], _DEFAULTS, _WITHOUT_EFFECT, "vision_cfg")
    tower = ModifiedResNetConfig(
        depths=tuple(vision["layers"]),
        width=vision["width"],
        num_heads=vision["width"] * 32 // vision["head_width"],
        num_features=model["embed_dim"],
        image_size=square(vision["image_size"], "image_size"),
    )
    rows = nested(_names(len(tower.depths)), r"visual\.", "vision_model")
    return both_towers(model, names, tower, rows, projects=False)  # the pooling's last layer is the projection


FAMILY = Family(
    name="clip_resnet",
    title="CLIP ResNet",
    module=ModifiedResNet,
    config=ModifiedResNetConfig,
    license="MIT",
    readers=(
        Reader(
            "open_clip",
            "open_clip_resnet",
            _read,
            module=CLIPModule,
            antialias=True,
            label="open_clip's RN50, RN101, RN50x4, ...",
            verified=("features", "text features", "a training step"),
        ),
    ),
)
