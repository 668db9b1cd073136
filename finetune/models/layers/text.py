"""What the text towers of CLIP, SigLIP and TIPSv2 share."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.models.layers.transformer import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """Sizes of a text tower.

    Attributes:
        vocab_size: number of different tokens.
        max_position_embeddings: the longest text, in tokens.
        eos_token_id: the end-of-text token, whose first occurrence counts; None means the highest id in the row.
        causal: a token reads only itself and those before it.
        pooling: the token that stands for the text: the end-of-text token, the first or the last of the row; or the
            mean of all tokens but padding.
        padding_hidden: no token reads padding. Without it a causal tower does not either, and the others read it.
        learned_positions: positions have a table of embeddings; without one they are sines and cosines.
        embedding_scale: what token embeddings are multiplied by.
        projection_size: width of the tower's output, where it has a projection of its own (SigLIP).
        canonical: texts are lower-cased and without punctuation before they are tokenized.
        drop_separator: the tokenizer's separator is replaced by padding, 0.
    """

    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int | None = None
    causal: bool = True
    pooling: Literal["end", "first", "last", "mean"] = "end"
    padding_hidden: bool = False
    learned_positions: bool = True
    embedding_scale: float = 1.0
    projection_size: int | None = None
    canonical: bool = False
    drop_separator: bool = False


def canonicalize(text: str) -> str:
    """Lower case, without punctuation, and with single spaces; underscores become spaces."""
    text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.lower().split())


class TextEmbeddings(nn.Module):
    """Token embeddings plus positions: int [M, length] -> [M, length, C]."""

    config: TextConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(config.initializer_factor * 0.02)
        self.token_embedding = nn.Embed(config.vocab_size, config.hidden_size, dtype=self.dtype, embedding_init=init)
        if config.learned_positions:
            self.position_embedding = nn.Embed(
                config.max_position_embeddings, config.hidden_size, dtype=self.dtype, embedding_init=init
            )

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        config, length = self.config, input_ids.shape[1]
        tokens = self.token_embedding(input_ids) * config.embedding_scale
        if config.learned_positions:
            return tokens + self.position_embedding(jnp.arange(length))
        return tokens + sinusoids(length, config.hidden_size).astype(self.dtype)


def sinusoids(length: int, width: int) -> jax.Array:
    """Positions as sines, then cosines, of wavelengths from 2 pi to 20,000 pi: float32 [length, width].

    As tensor2tensor has them; Vaswani et al. 2017 (arXiv:1706.03762, section 3.5) interleave the two.
    """
    half = width // 2
    frequencies = jnp.exp(jnp.arange(half) * (-jnp.log(10000.0) / max(half - 1, 1)))
    angles = jnp.arange(length)[:, None] * frequencies
    return jnp.pad(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1), ((0, 0), (0, width % 2)))
