"""The network of Swin and Swin V2: attention in windows that every second block shifts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from finetune.errors import ModelError
from finetune.models.depth import DepthOrder
from finetune.models.layers.base import BackboneOutput, DropPath, activation, rematerialized
from finetune.models.layers.windows import (
    Size,
    biased_attention,
    merge,
    partition,
    relative_index,
    resample_table,
    shift_bias,
)


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Sizes and variants.

    Attributes:
        image_size, patch_size: edges in pixels. Images may have other sizes.
        embed_dim: channels of the first stage; they double from stage to stage.
        depths, num_heads: number of blocks, and of attention heads, in each stage.
        window_sizes: edge of each stage's windows in pretraining, in patches of that stage.
        window_rule: windows of other feature maps. "fixed": the same, and a smaller map is an error (transformers' V1).
            "clipped": the same, but no larger than that stage's map in pretraining (transformers' V2). "scaled": they
            grow with the grid of patches, and are no larger than the map (timm).
        reference_grid: patches along one edge in pretraining.
        version: 2 has cosine attention, a position bias from an MLP, and norms after the branches.
        pretrained_windows: each stage's window to which the MLP's coordinates are scaled; 0 for the current window.
        mlp_ratio: hidden width of a block's MLP, in its channels.
        qkv_bias: queries, keys (V1 only) and values have biases.
        separation: added to the logits between tokens that only the shift of the windows brings together.
        pad_first: a map is padded to whole windows before it is shifted, rather than after.
        dropout, attention_dropout: rates during training.
        drop_path_rate: stochastic depth of the last block during training; it grows linearly from 0 at the first.
    """

    image_size: int
    patch_size: int
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_sizes: tuple[int, ...]
    window_rule: Literal["fixed", "clipped", "scaled"]
    reference_grid: int
    version: Literal[1, 2] = 1
    pretrained_windows: tuple[int, ...] = ()
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    separation: float = -100.0
    pad_first: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path_rate: float = 0.0

    learned_positions: ClassVar[bool] = False  # of the patches; positions within a window are learned

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int) or not isinstance(self.patch_size, int):
            received = f"image_size {self.image_size}, patch_size {self.patch_size}"
            raise ModelError(f"only square images and patches are supported; received {received}")
        for name in ("num_heads", "window_sizes", "pretrained_windows"):
            values = getattr(self, name)
            if values and len(values) != len(self.depths):
                raise ModelError(f"{name} {values} and depths {self.depths} differ in length")

    @property
    def num_features(self) -> int:
        return self.channels(len(self.depths) - 1)

    def channels(self, stage: int) -> int:
        return self.embed_dim * 2**stage

    def windows(self, stage: int, grid: Size, size: Size) -> tuple[Size, Size]:
        """Height and width of a stage's windows, and by how much every second block shifts them.

        Args:
            grid: of the image's patches.
            size: of the stage's feature map.
        """
        edge = self.window_sizes[stage]
        if self.window_rule == "scaled":
            scaled = [max(1, edge * patches // self.reference_grid) for patches in grid]
            window = [min(pair) for pair in zip(scaled, size, strict=True)]
            shift = [wide // 2 if wide < length else 0 for wide, length in zip(scaled, size, strict=True)]
            return (window[0], window[1]), (shift[0], shift[1])
        if self.window_rule == "clipped":
            smallest, edge = self.reference_grid // 2**stage, min(edge, self.reference_grid // 2**stage)
        elif (smallest := min(size)) < edge:
            raise ModelError(
                f"image_size: too small for windows of {edge}x{edge}: stage {stage + 1} has {size[0]}x{size[1]} patches"
            )
        shift_by = edge // 2 if edge < smallest else 0
        return (edge, edge), (shift_by, shift_by)

    def table_window(self, stage: int) -> Size:
        """The window that a stage's table of relative positions is for."""
        grid, edge = self.reference_grid, -(-self.reference_grid // 2**stage)
        return self.windows(stage, (grid, grid), (edge, edge))[0]


_INIT = nn.initializers.truncated_normal(0.02)
_BIAS_WIDTH = 512  # hidden units of V2's MLP for the position bias
# The fast variance, E[x^2] - E[x]^2, loses precision where the mean is large, as in a trained residual stream.
_LayerNorm = partial(nn.LayerNorm, use_fast_variance=False)


def _normalize(x: jax.Array) -> jax.Array:
    """Vectors of length one along the last axis, float32; those of zeros, such as padding, stay zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))


class PositionMLP(nn.Module):
    """V2's bias, a function of the logarithm of relative positions (section 3.3): [heads, tokens, tokens]."""

    heads: int
    pretrained_window: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.fc1 = nn.Dense(_BIAS_WIDTH, dtype=self.dtype, kernel_init=_INIT)
        self.fc2 = nn.Dense(self.heads, use_bias=False, dtype=self.dtype, kernel_init=_INIT)

    def __call__(self, window: Size) -> jax.Array:
        axes, index = [], relative_index(window)
        for edge in window:
            offsets = np.arange(1 - edge, edge) * 8 / max((self.pretrained_window or edge) - 1, 1)
            axes.append(np.sign(offsets) * np.log2(np.abs(offsets) + 1) / 3)
        positions = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        table = self.fc2(jax.nn.relu(self.fc1(jnp.asarray(positions, jnp.float32))))
        return 16 * jax.nn.sigmoid(table)[index].transpose(2, 0, 1)


class WindowAttention(nn.Module):
    """Multi-head attention inside each window: [N, windows, tokens, C] to the same shape."""

    config: SwinConfig
    stage: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config, heads = self.config, self.config.num_heads[self.stage]
        dense = partial(nn.Dense, config.channels(self.stage), dtype=self.dtype, kernel_init=_INIT)
        self.q_proj = dense(use_bias=config.qkv_bias)
        self.k_proj = dense(use_bias=config.qkv_bias and config.version == 1)
        self.v_proj = dense(use_bias=config.qkv_bias)
        self.out_proj = dense()
        self.dropout = nn.Dropout(config.attention_dropout)
        if config.version == 1:
            rows = (2 * config.table_window(self.stage)[0] - 1) ** 2
            self.relative_position_embedding = self.param("relative_position_embedding", _INIT, (rows, heads))
        else:
            pretrained = config.pretrained_windows[self.stage] if config.pretrained_windows else 0
            self.position_bias = PositionMLP(heads, pretrained, dtype=self.dtype)
            self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(10)), (heads, 1, 1))

    def __call__(self, x: jax.Array, window: Size, separation: np.ndarray | None, train: bool) -> jax.Array:
        def split_heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:-1], self.config.num_heads[self.stage], -1)

        q, k, v = (split_heads(projection(x)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        if self.config.version == 1:
            bias, scale = self._table_bias(window), q.shape[-1] ** -0.5
        else:
            # at most 100, and in float32: at that temperature bfloat16's cosines are too coarse
            bias, scale = self.position_bias(window), jnp.exp(jnp.minimum(self.logit_scale, np.log(100)))
            q, k = _normalize(q), _normalize(k)
        bias = bias if separation is None else bias + separation
        dropout = partial(self.dropout, deterministic=False) if train and self.config.attention_dropout else None
        context = biased_attention(q, k, v, bias, scale, dropout)
        return self.out_proj(context.reshape(x.shape))

    def _table_bias(self, window: Size) -> jax.Array:
        """V1's bias, from a table of all relative positions: float32 [heads, tokens, tokens]."""
        table = self.relative_position_embedding
        table = resample_table(table, self.config.table_window(self.stage), window, "geometric")
        return table[relative_index(window)].transpose(2, 0, 1)


class SwinMLP(nn.Module):
    """Two dense layers with an activation between them: [..., C] to the same shape."""

    config: SwinConfig
    stage: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        width = self.config.channels(self.stage)
        self.fc1 = nn.Dense(int(self.config.mlp_ratio * width), dtype=self.dtype, kernel_init=_INIT)
        self.fc2 = nn.Dense(width, dtype=self.dtype, kernel_init=_INIT)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(activation(self.config.hidden_act)(self.fc1(x)))


class SwinBlock(nn.Module):
    """Attention in windows, and an MLP, each with a shortcut around it: [N, H, W, C] to the same shape.

    Attributes:
        drop_path_rate: stochastic depth of this block during training.
    """

    config: SwinConfig
    stage: int
    drop_path_rate: float
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.norm1 = _LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype)
        self.attention = WindowAttention(config, self.stage, dtype=self.dtype)
        self.norm2 = _LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype)
        self.mlp = SwinMLP(config, self.stage, dtype=self.dtype)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(self.drop_path_rate)

    def __call__(self, x: jax.Array, window: Size, shift: Size, train: bool = False) -> jax.Array:
        def regularize(branch: jax.Array) -> jax.Array:
            return self.drop_path(branch, deterministic=not train)

        def attend(x: jax.Array) -> jax.Array:
            return self.dropout(self._attend(x, window, shift, train), deterministic=not train)

        def mlp(x: jax.Array) -> jax.Array:
            return self.dropout(self.mlp(x), deterministic=not train)

        if self.config.version == 1:
            x = x + regularize(attend(self.norm1(x)))
            return x + regularize(mlp(self.norm2(x)))
        x = x + regularize(self.norm1(attend(x)))
        return x + regularize(self.norm2(mlp(x)))

    def _attend(self, x: jax.Array, window: Size, shift: Size, train: bool) -> jax.Array:
        """Attention in the windows of a map that is padded with zeros, which are not hidden, to whole windows."""
        height, width = x.shape[1:3]
        pads = [-length % edge for length, edge in zip((height, width), window, strict=True)]

        def pad(x: jax.Array) -> jax.Array:
            return jnp.pad(x, ((0, 0), (0, pads[0]), (0, pads[1]), (0, 0)))

        def roll(x: jax.Array, direction: int) -> jax.Array:
            return jnp.roll(x, (direction * shift[0], direction * shift[1]), (1, 2)) if any(shift) else x

        def crop(x: jax.Array) -> jax.Array:
            return x[:, :height, :width]

        x = roll(pad(x), -1) if self.config.pad_first else pad(roll(x, -1))
        size = (height + pads[0], width + pads[1])
        separation = shift_bias(size, window, shift, self.config.separation) if any(shift) else None
        x = merge(self.attention(partition(x, window), window, separation, train), window, size)
        return crop(roll(x, 1)) if self.config.pad_first else roll(crop(x), 1)


class SwinStem(nn.Module):
    """A patch embedding, then a LayerNorm: [N, H, W, 3] to [N, H / patch_size, W / patch_size, embed_dim]."""

    config: SwinConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        patch = (self.config.patch_size, self.config.patch_size)
        self.conv = nn.Conv(
            self.config.embed_dim, patch, strides=patch, padding="VALID", dtype=self.dtype, kernel_init=_INIT
        )
        self.norm = _LayerNorm(epsilon=1e-5, dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        down, right = (-length % self.config.patch_size for length in x.shape[1:3])
        return self.norm(self.conv(jnp.pad(x, ((0, 0), (0, down), (0, right), (0, 0)))))


class PatchMerging(nn.Module):
    """Joins each 2x2 patches to one: [N, H, W, C] to [N, H / 2, W / 2, 2 C], with zeros beyond an odd edge."""

    config: SwinConfig
    stage: int
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        width = self.config.channels(self.stage)
        self.norm = _LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.reduction = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=_INIT)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        return self.reduction(self.norm(x)) if self.config.version == 1 else self.norm(self.reduction(x))


class SwinStage(nn.Module):
    """The blocks at one resolution; every stage but the first begins by merging patches."""

    config: SwinConfig
    stage: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        if self.stage > 0:
            self.downsample = PatchMerging(config, self.stage, dtype=self.dtype)
        before, total = sum(config.depths[: self.stage]), sum(config.depths)
        block = rematerialized(SwinBlock, self.remat, static=(2, 3, 4))
        self.blocks = [
            block(config, self.stage, config.drop_path_rate * (before + i) / max(total - 1, 1), dtype=self.dtype)
            for i in range(config.depths[self.stage])
        ]

    def __call__(self, x: jax.Array, grid: Size, train: bool = False) -> jax.Array:
        if self.stage > 0:
            x = self.downsample(x)
        window, shift = self.config.windows(self.stage, grid, (x.shape[1], x.shape[2]))
        for i, block in enumerate(self.blocks):
            x = block(x, window, shift if i % 2 else (0, 0), train)
        return x


class SwinModule(nn.Module):
    """float32 [N, H, W, 3] -> BackboneOutput of the last stage's patches, normalized, and their mean [N, C]."""

    # merging patches counts as part of the block after it
    depth_order: ClassVar[DepthOrder] = DepthOrder(
        stem=r"stem/.*", blocks=r"stages_(\d+)/(?:downsample|blocks_(\d+))/.*", top=r"norm/.*"
    )

    config: SwinConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        self.stem = SwinStem(config, dtype=self.dtype)
        self.dropout = nn.Dropout(config.dropout)
        self.stages = [SwinStage(config, i, dtype=self.dtype, remat=self.remat) for i in range(len(config.depths))]
        self.norm = _LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype)

    def __call__(self, pixel_values: jax.Array, train: bool = False) -> BackboneOutput:
        x = self.dropout(self.stem(pixel_values), deterministic=not train)
        grid = (x.shape[1], x.shape[2])
        for stage in self.stages:
            x = stage(x, grid, train)
        tokens = self.norm(x.reshape(x.shape[0], -1, x.shape[-1]))
        return BackboneOutput(last_hidden_state=tokens, pooler_output=tokens.mean(axis=1))
