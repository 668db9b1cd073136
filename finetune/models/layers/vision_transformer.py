"""The vision transformer that CLIP, SigLIP, ViT, DINO and others share: embeddings, encoder, pooling.

"An Image is Worth 16x16 Words" (Dosovitskiy et al. 2021, arXiv:2010.11929). The families differ only in their
configurations and tensor names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.errors import ModelError
from finetune.models.depth import TRANSFORMER, DepthOrder
from finetune.models.layers.attention import attention
from finetune.models.layers.base import BackboneOutput
from finetune.models.layers.rotary import Rope, Rotation, patch_rotation
from finetune.models.layers.transformer import MLP, Attention, Encoder, TransformerConfig, norm_layer

# How the tokens are pooled: the class token; the mean of class and distillation tokens; the mean of the patches; a
# dense layer with tanh on the class token (as in BERT); attention with a learned query, then an MLP (as in SigLIP); the
# same with one dense layer in place of the MLP, and the query not projected (as in AIMv2).
Pooling = Literal["class", "class_distilled", "mean", "tanh", "attention", "query"]


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
        register_positions: with ``prefix_positions``, the register tokens have them as well.
        rope: rotary position embeddings, and what they are of (see :mod:`finetune.models.layers.rotary`).
        rope_base, rope_reference, rope_offset: ``base``, ``reference`` and ``offset`` of ``patch_rotation``.
        embedding_norm: a norm of the patch embeddings, before the positions are added.
        pre_norm: a norm before the first block.
        pooling: how ``pooler_output`` is computed.
        pool_prefix: the attention pooling reads the tokens in front of the patches too.
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
    register_positions: bool = False
    rope: Rope | None = None
    rope_base: float = 10000.0
    rope_reference: int | None = None
    rope_offset: float = 0.0
    embedding_norm: bool = False
    pre_norm: bool = False
    pooling: Pooling = "class"
    pool_prefix: bool = True
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
        if not self.prefix_positions:
            return 0
        return self.prefix_tokens if self.register_positions else self.class_token + self.distillation_token


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
            self.norm = norm_layer(config, self.dtype)
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
        if config.register_positions:
            prefix, registers = prefix + registers, []
        positions = self.position_embedding(jnp.arange(config.position_prefix + config.grid**2))
        if config.prefix_positions:
            tokens = jnp.concatenate([*prefix, patches], axis=1) + positions
            if not registers:
                return tokens
            return jnp.concatenate([tokens[:, : len(prefix)], *registers, tokens[:, len(prefix) :]], axis=1)
        return jnp.concatenate([*prefix, *registers, patches + positions], axis=1)


class AttentionPool(nn.Module):
    """Attention from one learned query to the tokens, then an MLP (Zhai et al. 2022, arXiv:2106.04560):
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
        self.layernorm = norm_layer(config, self.dtype)
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
            self.pre_layrnorm = norm_layer(config, self.dtype)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config, dtype=self.dtype, remat=self.remat, scan_layers=self.scan_layers)
        self.post_layernorm = norm_layer(config, self.dtype)
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
        patches = hidden[:, config.prefix_tokens :]
        if config.pooling == "attention":
            return self.pooler(hidden if config.pool_prefix else patches, train)
        if config.pooling == "query":
            return self.pooler(hidden)
        if config.pooling == "tanh":
            return jnp.tanh(self.pooler(hidden[:, 0]))
        if config.pooling == "class_distilled":
            return hidden[:, :2].mean(axis=1)
        if config.pooling == "mean":
            return patches.mean(axis=1)
        return hidden[:, 0]
