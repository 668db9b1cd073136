"""What the text towers of CLIP and SigLIP share."""

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
        pooling: the token that stands for the text: the end-of-text token, the first or the last of the row.
        projection_size: width of the tower's output, where it has a projection of its own (SigLIP).
        canonical: texts are lower-cased and without punctuation before they are tokenized.
        drop_separator: the tokenizer's separator is replaced by padding, 0.
    """

    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int | None = None
    causal: bool = True
    pooling: Literal["end", "first", "last"] = "end"
    projection_size: int | None = None
    canonical: bool = False
    drop_separator: bool = False


def canonicalize(text: str) -> str:
    """Lower case, without punctuation, and with single spaces; underscores become spaces."""
    text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.lower().split())


class TextEmbeddings(nn.Module):
    """Token embeddings plus learned positions: int [M, length] -> [M, length, C]."""

    config: TextConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        init = nn.initializers.normal(config.initializer_factor * 0.02)
        self.token_embedding = nn.Embed(config.vocab_size, config.hidden_size, dtype=self.dtype, embedding_init=init)
        self.position_embedding = nn.Embed(
            config.max_position_embeddings, config.hidden_size, dtype=self.dtype, embedding_init=init
        )

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        return self.token_embedding(input_ids) + self.position_embedding(jnp.arange(input_ids.shape[1]))
