"""The transformer that CLIP, SigLIP, ViT, DINO and others share: one block, one encoder, one vision model.

"An Image is Worth 16x16 Words" (Dosovitskiy et al. 2021, arXiv:2010.11929). The families differ only in their
configurations and tensor names. The paths of all parameters that CLIP has are those of ``FlaxCLIPModel`` in
transformers 4.57.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.errors import ModelError
from finetune.models.depth import TRANSFORMER, DepthOrder
from finetune.models.layers.attention import attention
from finetune.models.layers.base import BackboneOutput, DropPath, activation, rematerialized
from finetune.models.layers.rotary import Rope, Rotation, patch_rotation
from finetune.models.layers.scan import apply_run, split_runs

# How the tokens are pooled: the class token; the mean of class and distillation tokens; the mean of the patches; a
# dense layer with tanh on the class token (as in BERT); attention with a learned query, then an MLP (as in SigLIP); the
# same with one dense layer in place of the MLP, and the query not projected (as in AIMv2).
Pooling = Literal["class", "class_distilled", "mean", "tanh", "attention", "query"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and variants of an encoder; the field names are those of transformers.

    Attributes:
        intermediate_size: hidden width of the MLP; with ``gated_mlp``, of each of its two halves.
        norm: LayerNorm, or RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467).
        layer_norm_eps: of all norms.
        qkv_bias: queries, keys and values have biases.
        key_bias: with ``qkv_bias``, keys have one too; without rotary positions, the softmax does not depend on it.
        out_bias, mlp_bias: the attention's last layer, the MLP's layers have biases.
        gated_mlp: use SwiGLU (Shazeer 2020, arXiv:2002.05202) instead of a plain MLP.
        split_gate: with ``gated_mlp``, the gate is a layer of its own rather than the first half of the first layer.
        attention_norm, mlp_norm: a norm before the last layer of the attention, of the MLP.
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
    norm: Literal["layer", "rms"] = "layer"
    qkv_bias: bool = True
    key_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    gated_mlp: bool = False
    split_gate: bool = False
    attention_norm: bool = False
    mlp_norm: bool = False
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

    @property
    def is_random(self) -> bool:
        """Whether blocks draw random numbers in training."""
        return bool(self.dropout or self.attention_dropout or self.drop_path_rate)


@dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
    """Sizes and variants of a vision tower.

    Attributes:
        image_size, patch_size: edges in pixels.
        patch_bias: the patch embedding has a bias.
        class_token, distillation_token: put such a learned token in front of the patches.
        register_tokens: number of learned tokens between those and the patches (Darcet et al. 2024, arXiv:2309.16588).
        learned_positions: patches have a table of learned position embeddings, for ``image_size`` only; without one,
            images may have any height and width.
        prefix_positions: the class and distillation tokens have position embeddings too.
        rope: rotary position embeddings, and what they are of (see :mod:`finetune.models.layers.rotary`).
        rope_base, rope_reference, rope_offset: ``base``, ``reference`` and ``offset`` of ``patch_rotation``.
        embedding_norm: a norm of the patch embeddings, before the positions are added.
        pre_norm: a norm before the first block.
        pooling: how ``pooler_output`` is computed.
        pool_heads, pool_intermediate_size: of the attention pooling, where they differ from those of the blocks.
        norm_after_pool: apply the last norm to the pooled vector; ``last_hidden_state`` is then not normalized.
    """

    image_size: int
    patch_size: int
    patch_bias: bool = True
    class_token: bool = True
    distillation_token: bool = False
    register_tokens: int = 0
    learned_positions: bool = True
    prefix_positions: bool = True
    rope: Rope | None = None
    rope_base: float = 10000.0
    rope_reference: int | None = None
    rope_offset: float = 0.0
    embedding_norm: bool = False
    pre_norm: bool = False
    pooling: Pooling = "class"
    pool_heads: int | None = None
    pool_intermediate_size: int | None = None
    norm_after_pool: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.image_size, int) or not isinstance(self.patch_size, int):
            received = f"image_size {self.image_size}, patch_size {self.patch_size}"
            raise ModelError(f"only square images and patches are supported; received {received}")
        if self.rope and self.head_dim % 4:
            raise ModelError(f"rotary positions need heads of a multiple of 4 channels; received {self.head_dim}")

    @property
    def num_features(self) -> int:
        return self.hidden_size

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens in front of the patches."""
        return self.class_token + self.distillation_token + self.register_tokens

    @property
    def grid(self) -> int:
        """Patches along one edge; pixels beyond the last complete patch are ignored."""
        return self.image_size // self.patch_size

    @property
    def position_prefix(self) -> int:
        """Number of position embeddings in front of those of the patches."""
        return (self.class_token + self.distillation_token) if self.prefix_positions else 0


def _norm(config: TransformerConfig, dtype: jnp.dtype) -> nn.Module:
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(epsilon=config.layer_norm_eps, dtype=dtype)


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
        self.k_proj = projection(in_std, config.qkv_bias and config.key_bias)
        self.v_proj = projection(in_std, config.qkv_bias)
        if config.attention_norm:
            self.norm = _norm(config, self.dtype)
        self.out_proj = projection(std, config.out_bias)
        self.dropout = nn.Dropout(config.attention_dropout)

    def __call__(
        self,
        queries: jax.Array,
        tokens: jax.Array,
        mask: jax.Array | None,
        train: bool,
        rotation: Rotation | None = None,
    ) -> jax.Array:
        def split_heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], self.config.num_attention_heads, -1)

        q, k, v = (split_heads(x) for x in (self.q_proj(queries), self.k_proj(tokens), self.v_proj(tokens)))
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        dropout = partial(self.dropout, deterministic=False) if train and self.config.attention_dropout else None
        context = attention(q, k, v, mask, dropout)
        context = context.reshape(*context.shape[:2], -1)
        return self.out_proj(self.norm(context) if self.config.attention_norm else context)


class MLP(nn.Module):
    """Two dense layers with an activation between them; if gated, half of the hidden units gate the other half, which
    ``split_gate`` makes two layers.
    """

    config: TransformerConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        in_std = config.hidden_size**-0.5 * (2 * config.num_hidden_layers) ** -0.5 * config.initializer_factor
        out_std = (2 * config.hidden_size) ** -0.5 * config.initializer_factor
        inner = config.intermediate_size
        dense = partial(nn.Dense, use_bias=config.mlp_bias, dtype=self.dtype)
        if config.split_gate:
            self.gate = dense(inner, kernel_init=nn.initializers.normal(out_std))
        packed = config.gated_mlp and not config.split_gate
        self.fc1 = dense(2 * inner if packed else inner, kernel_init=nn.initializers.normal(out_std))
        if config.mlp_norm:
            self.norm = _norm(config, self.dtype)
        self.fc2 = dense(config.hidden_size, kernel_init=nn.initializers.normal(in_std))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        config, hidden = self.config, self.fc1(tokens)
        if config.gated_mlp:
            gate, hidden = (self.gate(tokens), hidden) if config.split_gate else jnp.split(hidden, 2, axis=-1)
            hidden = jax.nn.silu(gate) * hidden
        else:
            hidden = activation(config.hidden_act)(hidden)
        return self.fc2(self.norm(hidden) if config.mlp_norm else hidden)


class EncoderLayer(nn.Module):
    """A pre-norm transformer block; with ``queries`` set, it returns only that many leading tokens."""

    config: TransformerConfig
    drop_path_rate: float | jax.Array = 0.0
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.layer_norm1 = _norm(config, self.dtype)
        self.self_attn = Attention(config, dtype=self.dtype)
        self.layer_norm2 = _norm(config, self.dtype)
        self.mlp = MLP(config, dtype=self.dtype)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(self.drop_path_rate)
        if config.layer_scale:
            init = nn.initializers.constant(1e-5)
            self.layer_scale1 = self.param("layer_scale1", init, (config.hidden_size,))
            self.layer_scale2 = self.param("layer_scale2", init, (config.hidden_size,))

    def __call__(
        self,
        hidden: jax.Array,
        mask: jax.Array | None,
        queries: int | None,
        train: bool,
        rotation: Rotation | None = None,
    ) -> jax.Array:
        tokens = self.layer_norm1(hidden)
        branch = self.self_attn(tokens[:, :queries], tokens, mask, train, rotation)
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
    scan_layers: tuple[int, ...] = ()

    def setup(self) -> None:
        config, count = self.config, self.config.num_hidden_layers
        block = rematerialized(EncoderLayer, self.remat, static=(3, 4))
        self.layers = [
            block(config, config.drop_path_rate * i / max(count - 1, 1), dtype=self.dtype, name=str(i))
            for i in range(count)
        ]

    def __call__(
        self,
        hidden: jax.Array,
        mask: jax.Array | None,
        queries: int | None,
        train: bool,
        rotation: Rotation | None = None,
    ) -> jax.Array:
        whole = self.layers if queries is None else self.layers[:-1]
        random = train and self.config.is_random
        for run in split_runs(whole, self.scan_layers):
            hidden = apply_run(
                run, hidden, lambda layer, hidden: layer(hidden, mask, None, train, rotation), random=random
            )
        return hidden if queries is None else self.layers[-1](hidden, mask, queries, train, rotation)


class Encoder(nn.Module):
    """All blocks: [N, tokens, C] to the same shape, or to the first ``queries`` tokens."""

    config: TransformerConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    scan_layers: tuple[int, ...] = ()

    def setup(self) -> None:
        self.layers = LayerCollection(self.config, dtype=self.dtype, remat=self.remat, scan_layers=self.scan_layers)

    def __call__(
        self,
        hidden: jax.Array,
        mask: jax.Array | None = None,
        queries: int | None = None,
        train: bool = False,
        rotation: Rotation | None = None,
    ) -> jax.Array:
        return self.layers(hidden, mask, queries, train, rotation)


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
        if config.embedding_norm:
            self.norm = _norm(config, self.dtype)
        if config.learned_positions:
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
        if config.embedding_norm:
            patches = self.norm(patches)

        def for_each_image(tokens: jax.Array) -> jax.Array:
            tokens = tokens.reshape(1, -1, tokens.shape[-1]).astype(patches.dtype)
            return jnp.broadcast_to(tokens, (patches.shape[0], *tokens.shape[1:]))

        prefix = [for_each_image(self.class_embedding)] if config.class_token else []
        prefix += [for_each_image(self.distillation_embedding)] if config.distillation_token else []
        registers = [for_each_image(self.register_embedding)] if config.register_tokens else []
        if not config.learned_positions:
            return jnp.concatenate([*prefix, *registers, patches], axis=1)
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
        own = replace(
            config,
            num_attention_heads=config.pool_heads or config.num_attention_heads,
            intermediate_size=config.pool_intermediate_size or config.intermediate_size,
            rope=None,
        )
        self.probe = self.param("probe", nn.initializers.normal(config.hidden_size**-0.5), (config.hidden_size,))
        self.attention = Attention(own, dtype=self.dtype)
        self.layernorm = _norm(config, self.dtype)
        self.mlp = MLP(own, dtype=self.dtype)

    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        probe = jnp.broadcast_to(self.probe.astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1]))
        pooled = self.attention(probe, tokens, None, train)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


class QueryPool(nn.Module):
    """Attention from one learned query, which is not projected, to all tokens, then a dense layer, as AIMv2 has it
    (Fini et al. 2024, arXiv:2411.14402): [N, tokens, C] -> [N, C].
    """

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        width, biases = self.config.hidden_size, self.config.qkv_bias
        init = nn.initializers.normal(width**-0.5)
        self.probe = self.param("probe", init, (width,))
        self.k_proj = nn.Dense(width, use_bias=biases, dtype=self.dtype, kernel_init=init)
        self.v_proj = nn.Dense(width, use_bias=biases, dtype=self.dtype, kernel_init=init)
        self.out_proj = nn.Dense(width, dtype=self.dtype, kernel_init=init)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        probe = jnp.broadcast_to(self.probe.astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1]))
        heads = self.config.num_attention_heads
        q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (probe, self.k_proj(tokens), self.v_proj(tokens)))
        return self.out_proj(attention(q, k, v).reshape(tokens.shape[0], -1))


class VisionTransformer(nn.Module):
    """The image tower: float32 [N, H, W, 3] -> BackboneOutput with ``pooler_output`` [N, hidden_size].

    H and W are ``image_size`` where the positions are learned. Rotary positions follow the image's own grid.

    With ``pooled_only``, ``last_hidden_state`` is None, and the last block computes only the tokens that the pooling
    reads; the pooled values are the same.

    Attributes:
        remat: recompute each block's activations in the backward pass.
        scan_layers: lengths of runs of blocks of which each is traced once (see :mod:`finetune.models.layers.scan`).
            All blocks of a run are to be trained in the same way: where one is frozen, all are.
    """

    depth_order: ClassVar[DepthOrder] = TRANSFORMER

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    scan_layers: tuple[int, ...] = ()

    def setup(self) -> None:
        config = self.config
        self.embeddings = VisionEmbeddings(config, dtype=self.dtype)
        if config.pre_norm:
            self.pre_layrnorm = _norm(config, self.dtype)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config, dtype=self.dtype, remat=self.remat, scan_layers=self.scan_layers)
        self.post_layernorm = _norm(config, self.dtype)
        if config.pooling == "tanh":
            self.pooler: nn.Module = nn.Dense(config.hidden_size, dtype=self.dtype)
        if config.pooling == "attention":
            self.pooler = AttentionPool(config, dtype=self.dtype)
        if config.pooling == "query":
            self.pooler = QueryPool(config, dtype=self.dtype)

    def __call__(self, pixel_values: jax.Array, train: bool = False, pooled_only: bool = False) -> BackboneOutput:
        config = self.config
        hidden = self.dropout(self.embeddings(pixel_values), deterministic=not train)
        if config.pre_norm:
            hidden = self.pre_layrnorm(hidden)
        tokens_read = {"class": 1, "tanh": 1, "class_distilled": 2}.get(config.pooling) if pooled_only else None
        rotation = self._rotation(pixel_values.shape[1:3])
        hidden = self.encoder(hidden, queries=tokens_read, train=train, rotation=rotation)
        if config.norm_after_pool:
            pooled = self.post_layernorm(self._pool(hidden, train))
        else:
            hidden = self.post_layernorm(hidden)
            pooled = self._pool(hidden, train)
        return BackboneOutput(last_hidden_state=None if pooled_only else hidden, pooler_output=pooled)

    def _rotation(self, size: tuple[int, ...]) -> Rotation | None:
        """The rotary positions of an image of that height and width."""
        config = self.config
        if config.rope is None:
            return None
        return patch_rotation(
            config.rope,
            (size[0] // config.patch_size, size[1] // config.patch_size),
            config.head_dim,
            prefix=config.prefix_tokens,
            base=config.rope_base,
            reference=config.rope_reference,
            offset=config.rope_offset,
        )

    def _pool(self, hidden: jax.Array, train: bool) -> jax.Array:
        config = self.config
        if config.pooling == "attention":
            return self.pooler(hidden, train)
        if config.pooling == "query":
            return self.pooler(hidden)
        if config.pooling == "tanh":
            return jnp.tanh(self.pooler(hidden[:, 0]))
        if config.pooling == "class_distilled":
            return hidden[:, :2].mean(axis=1)
        if config.pooling == "mean":
            return hidden[:, config.prefix_tokens :].mean(axis=1)
        return hidden[:, 0]
