"""What the text towers of CLIP and SigLIP share."""

from __future__ import annotations

from dataclasses import dataclass

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
        eos_token_id: the end-of-text token (CLIP); 2 means the highest id in the row.
        projection_size: width of the tower's output, where it has a projection of its own (SigLIP).
    """

    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int = 2
    projection_size: int | None = None


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
