"""The encoder that vision and text towers share: attention, MLP, one pre-norm block, and all blocks in a row.

"Attention Is All You Need" (Vaswani et al. 2017, arXiv:1706.03762), with the norms before the branches. The paths of
all parameters that CLIP has are those of ``FlaxCLIPModel`` in transformers 4.57.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.errors import ModelError
from finetune.models.layers.attention import attention
from finetune.models.layers.base import DropPath, activation, rematerialized
from finetune.models.layers.rotary import Rotation
from finetune.models.layers.scan import apply_run, split_runs


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


def norm_layer(config: TransformerConfig, dtype: jnp.dtype) -> nn.Module:
    """The kind of norm that the configuration asks for."""
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
            self.norm = norm_layer(config, self.dtype)
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
            self.norm = norm_layer(config, self.dtype)
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
        self.layer_norm1 = norm_layer(config, self.dtype)
        self.self_attn = Attention(config, dtype=self.dtype)
        self.layer_norm2 = norm_layer(config, self.dtype)
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
