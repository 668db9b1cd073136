"""The transformer that CLIP, SigLIP, ViT, DeiT and DINOv2 share: one block, one encoder, one vision model.

"An Image is Worth 16x16 Words" (Dosovitskiy et al. 2021, arXiv:2010.11929). The families differ only in their
configurations and tensor names. The paths of all parameters that CLIP has are those of ``FlaxCLIPModel`` in
transformers 4.57.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.errors import ModelError
from finetune.models.depth import TRANSFORMER, DepthOrder
from finetune.models.layers.attention import attention
from finetune.models.layers.base import BackboneOutput, activation, drop_path, rematerialized

# How the tokens are pooled: the class token; the mean of class and distillation tokens; the mean of the patches; a
# dense layer with tanh on the class token (as in BERT); attention with a learned query (as in SigLIP).
Pooling = Literal["class", "class_distilled", "mean", "tanh", "attention"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and variants of an encoder; the field names are those of transformers.

    Attributes:
        intermediate_size: hidden width of the MLP; with ``gated_mlp``, of each of its two halves.
        gated_mlp: use SwiGLU (Shazeer 2020, arXiv:2002.05202) instead of a plain MLP.
        layer_scale: multiply each branch by a learned vector (Touvron et al. 2021, arXiv:2103.17239).
        dropout, attention_dropout: rates during training.
        drop_path_rate: stochastic depth of the last block during training; it grows linearly from 0 at the first.
        initializer_factor: scales the initial weights.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    gated_mlp: bool = False
    layer_scale: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path_rate: float = 0.0
    initializer_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ModelError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
    """Sizes and variants of a vision tower.

    Attributes:
        image_size, patch_size: edges in pixels.
        patch_bias: the patch embedding has a bias.
        class_token, distillation_token: put such a learned token in front of the patches.
        register_tokens: number of learned tokens between those and the patches (Darcet et al. 2024, arXiv:2309.16588).
        prefix_positions: the class and distillation tokens have position embeddings too.
        pre_norm: a LayerNorm before the first block.
        pooling: how ``pooler_output`` is computed.
        norm_after_pool: apply the last LayerNorm to the pooled vector; ``last_hidden_state`` is then not normalized.
    """

    image_size: int
    patch_size: int
    patch_bias: bool = True
    class_token: bool = True
    distillation_token: bool = False
    register_tokens: int = 0
    prefix_positions: bool = True
    pre_norm: bool = False
    pooling: Pooling = "class"
    norm_after_pool: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.image_size, int) or not isinstance(self.patch_size, int):
            received = f"image_size {self.image_size}, patch_size {self.patch_size}"
            raise ModelError(f"only square images and patches are supported; received {received}")

    @property
    def num_features(self) -> int:
        return self.hidden_size

    @property
    def grid(self) -> int:
        """Patches along one edge; pixels beyond the last complete patch are ignored."""
        return self.image_size // self.patch_size

    @property
    def position_prefix(self) -> int:
        """Number of position embeddings in front of those of the patches."""
        return (self.class_token + self.distillation_token) if self.prefix_positions else 0


class Attention(nn.Module):
    """Multi-head attention from ``queries`` [N, q, C] to ``tokens`` [N, t, C]: [N, q, C]."""

    config: TransformerConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config, std = self.config, self.config.hidden_size**-0.5 * self.config.initializer_factor
        in_std = std * (2 * config.num_hidden_layers) ** -0.5

        def projection(stddev: float, bias: bool) -> nn.Dense:
            init = nn.initializers.normal(stddev)
            return nn.Dense(config.hidden_size, use_bias=bias, dtype=self.dtype, kernel_init=init)

        self.q_proj = projection(in_std, config.qkv_bias)
        self.k_proj = projection(in_std, config.qkv_bias)
        self.v_proj = projection(in_std, config.qkv_bias)
        self.out_proj = projection(std, True)
        self.dropout = nn.Dropout(config.attention_dropout)

    def __call__(self, queries: jax.Array, tokens: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        def split_heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], self.config.num_attention_heads, -1)

        q, k, v = (split_heads(x) for x in (self.q_proj(queries), self.k_proj(tokens), self.v_proj(tokens)))
        dropout = partial(self.dropout, deterministic=False) if train and self.config.attention_dropout else None
        context = attention(q, k, v, mask, dropout)
        return self.out_proj(context.reshape(*context.shape[:2], -1))


class MLP(nn.Module):
    """Two dense layers with an activation between them; if gated, half of the hidden units gate the other half."""

    config: TransformerConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        in_std = config.hidden_size**-0.5 * (2 * config.num_hidden_layers) ** -0.5 * config.initializer_factor
        out_std = (2 * config.hidden_size) ** -0.5 * config.initializer_factor
        inner = config.intermediate_size * (2 if config.gated_mlp else 1)
        self.fc1 = nn.Dense(inner, dtype=self.dtype, kernel_init=nn.initializers.normal(out_std))
        self.fc2 = nn.Dense(config.hidden_size, dtype=self.dtype, kernel_init=nn.initializers.normal(in_std))

    def __call__(self, hidden: jax.Array) -> jax.Array:
        hidden = self.fc1(hidden)
        if self.config.gated_mlp:
            gate, hidden = jnp.split(hidden, 2, axis=-1)
            return self.fc2(jax.nn.silu(gate) * hidden)
        return self.fc2(activation(self.config.hidden_act)(hidden))


class EncoderLayer(nn.Module):
    """A pre-norm transformer block; with ``queries`` set, it returns only that many leading tokens."""

    config: TransformerConfig
    drop_path_rate: float = 0.0
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.layer_norm1 = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype)
        self.self_attn = Attention(config, dtype=self.dtype)
        self.layer_norm2 = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype)
        self.mlp = MLP(config, dtype=self.dtype)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = drop_path(self.drop_path_rate, 3)
        if config.layer_scale:
            init = nn.initializers.constant(1e-5)
            self.layer_scale1 = self.param("layer_scale1", init, (config.hidden_size,))
            self.layer_scale2 = self.param("layer_scale2", init, (config.hidden_size,))

    def __call__(self, hidden: jax.Array, mask: jax.Array | None, queries: int | None, train: bool) -> jax.Array:
        tokens = self.layer_norm1(hidden)
        branch = self.self_attn(tokens[:, :queries], tokens, mask, train)
        hidden = hidden[:, :queries] + self._regularize(branch, 1, train)
        return hidden + self._regularize(self.mlp(self.layer_norm2(hidden)), 2, train)

    def _regularize(self, branch: jax.Array, number: int, train: bool) -> jax.Array:
        """Dropout, layer scale and stochastic depth of the first or second branch."""
        branch = self.dropout(branch, deterministic=not train)
        if self.config.layer_scale:
            branch = branch * (self.layer_scale1 if number == 1 else self.layer_scale2).astype(branch.dtype)
        return self.drop_path(branch, deterministic=not train)


class LayerCollection(nn.Module):
    """The blocks; a module of its own so that their paths are FlaxCLIPModel's ``encoder/layers/0``."""

    config: TransformerConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config, count = self.config, self.config.num_hidden_layers
        block = rematerialized(EncoderLayer, self.remat, static=(3, 4))
        self.layers = [
            block(config, config.drop_path_rate * i / max(count - 1, 1), dtype=self.dtype, name=str(i))
            for i in range(count)
        ]

    def __call__(self, hidden: jax.Array, mask: jax.Array | None, queries: int | None, train: bool) -> jax.Array:
        for layer in self.layers[:-1]:
            hidden = layer(hidden, mask, None, train)
        return self.layers[-1](hidden, mask, queries, train)


class Encoder(nn.Module):
    """All blocks: [N, tokens, C] to the same shape, or to the first ``queries`` tokens."""

    config: TransformerConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        self.layers = LayerCollection(self.config, dtype=self.dtype, remat=self.remat)

    def __call__(
        self, hidden: jax.Array, mask: jax.Array | None = None, queries: int | None = None, train: bool = False
    ) -> jax.Array:
        return self.layers(hidden, mask, queries, train)


class VisionEmbeddings(nn.Module):
    """Patch embeddings, learned tokens and positions: float32 [N, H, W, 3] -> [N, tokens, C]."""

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config, width = self.config, self.config.hidden_size
        init = nn.initializers.normal(0.02 * config.initializer_factor)
        self.patch_embedding = nn.Conv(
            width,
            kernel_size=(config.patch_size, config.patch_size),
            strides=(config.patch_size, config.patch_size),
            padding="VALID",
            use_bias=config.patch_bias,
            dtype=self.dtype,
            kernel_init=init,
        )
        positions = config.position_prefix + config.grid**2
        self.position_embedding = nn.Embed(positions, width, dtype=self.dtype, embedding_init=init)
        token_init = nn.initializers.normal(width**-0.5 * config.initializer_factor)
        if config.class_token:
            self.class_embedding = self.param("class_embedding", token_init, (width,))
        if config.distillation_token:
            self.distillation_embedding = self.param("distillation_embedding", token_init, (width,))
        if config.register_tokens:
            self.register_embedding = self.param("register_embedding", token_init, (config.register_tokens, width))

    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        config = self.config
        patches = self.patch_embedding(pixel_values)
        patches = patches.reshape(patches.shape[0], -1, patches.shape[-1])

        def for_each_image(tokens: jax.Array) -> jax.Array:
            tokens = tokens.reshape(1, -1, tokens.shape[-1]).astype(patches.dtype)
            return jnp.broadcast_to(tokens, (patches.shape[0], *tokens.shape[1:]))

        prefix = [for_each_image(self.class_embedding)] if config.class_token else []
        prefix += [for_each_image(self.distillation_embedding)] if config.distillation_token else []
        registers = [for_each_image(self.register_embedding)] if config.register_tokens else []
        positions = self.position_embedding(jnp.arange(config.position_prefix + config.grid**2))
        if config.prefix_positions:
            tokens = jnp.concatenate([*prefix, patches], axis=1) + positions
            if not registers:
                return tokens
            return jnp.concatenate([tokens[:, : len(prefix)], *registers, tokens[:, len(prefix) :]], axis=1)
        return jnp.concatenate([*prefix, *registers, patches + positions], axis=1)


class AttentionPool(nn.Module):
    """Attention from one learned query to all tokens, then an MLP (Zhai et al. 2022, arXiv:2106.04560):
    [N, tokens, C] -> [N, C].
    """

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.probe = self.param("probe", nn.initializers.normal(config.hidden_size**-0.5), (config.hidden_size,))
        self.attention = Attention(config, dtype=self.dtype)
        self.layernorm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype)
        self.mlp = MLP(config, dtype=self.dtype)

    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        probe = jnp.broadcast_to(self.probe.astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1]))
        pooled = self.attention(probe, tokens, None, train)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


class VisionTransformer(nn.Module):
    """The image tower: float32 [N, H, W, 3] -> BackboneOutput with ``pooler_output`` [N, hidden_size].

    With ``pooled_only``, ``last_hidden_state`` is None, and the last block computes only the tokens that the pooling
    reads; the pooled values are the same.
    """

    depth_order: ClassVar[DepthOrder] = TRANSFORMER

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        self.embeddings = VisionEmbeddings(config, dtype=self.dtype)
        if config.pre_norm:
            self.pre_layrnorm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config, dtype=self.dtype, remat=self.remat)
        self.post_layernorm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype)
        if config.pooling == "tanh":
            self.pooler: nn.Module = nn.Dense(config.hidden_size, dtype=self.dtype)
        if config.pooling == "attention":
            self.pooler = AttentionPool(config, dtype=self.dtype)

    def __call__(self, pixel_values: jax.Array, train: bool = False, pooled_only: bool = False) -> BackboneOutput:
        config = self.config
        hidden = self.dropout(self.embeddings(pixel_values), deterministic=not train)
        if config.pre_norm:
            hidden = self.pre_layrnorm(hidden)
        tokens_read = {"class": 1, "tanh": 1, "class_distilled": 2}.get(config.pooling) if pooled_only else None
        hidden = self.encoder(hidden, queries=tokens_read, train=train)
        if config.norm_after_pool:
            pooled = self.post_layernorm(self._pool(hidden, train))
        else:
            hidden = self.post_layernorm(hidden)
            pooled = self._pool(hidden, train)
        return BackboneOutput(last_hidden_state=None if pooled_only else hidden, pooler_output=pooled)

    def _pool(self, hidden: jax.Array, train: bool) -> jax.Array:
        config = self.config
        if config.pooling == "attention":
            return self.pooler(hidden, train)
        if config.pooling == "tanh":
            return jnp.tanh(self.pooler(hidden[:, 0]))
        if config.pooling == "class_distilled":
            return hidden[:, :2].mean(axis=1)
        if config.pooling == "mean":
            return hidden[:, -(config.grid**2) :].mean(axis=1)
        return hidden[:, 0]
