"""CLIP (Radford et al. 2021, arXiv:2103.00020) in Flax Linen.

The parameter tree is, path for path, that of ``FlaxCLIPModule`` in transformers 4.57, so that trees made with either
fit the other. Configuration classes come from transformers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from finetune.models.layers import BackboneOutput, activation, attention
from finetune.weights.names import Drop, Rename, convolution, linear

# OpenAI's pixel statistics, for checkpoints that carry no preprocessor_config.json.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# transformers' tensor names; the order matters, the first row that matches decides.
NAMES = (
    Drop(r".*\.position_ids"),
    Rename(r"(.*\bpatch_embedding)\.weight", r"\1.kernel", convolution),
    Rename(r"(.*\b(?:token|position)_embedding)\.weight", r"\1.embedding"),
    Rename(r"(.*norm[12]?)\.weight", r"\1.scale"),
    Rename(r"(.*(?:_proj|_projection|\bfc[12]))\.weight", r"\1.kernel", linear),
    Rename(r"(.*\b(?:bias|class_embedding|logit_scale))", r"\1"),
)
# A vision tower alone, with the prefix that transformers before 5 wrote or without.
VISION_NAMES = tuple(replace(row, pattern=rf"(?:vision_model\.)?{row.pattern}") for row in NAMES)


@struct.dataclass
class CLIPOutput:
    """Similarities and embeddings of N images and M texts.

    Attributes:
        logits_per_image: float32 [N, M], cosine similarity times ``exp(logit_scale)``; logits_per_text its transpose.
        image_embeds, text_embeds: unit vectors, [N, projection_dim] and [M, projection_dim].
        vision_model_output, text_model_output: each tower's own output.
    """

    logits_per_image: jax.Array
    logits_per_text: jax.Array
    image_embeds: jax.Array
    text_embeds: jax.Array
    vision_model_output: BackboneOutput
    text_model_output: BackboneOutput


class CLIPAttention(nn.Module):
    """Multi-head self-attention; the first ``queries`` tokens ask, all tokens answer."""

    config: CLIPTextConfig | CLIPVisionConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        width, std = self.config.hidden_size, self.config.hidden_size**-0.5
        in_std = std * (2 * self.config.num_hidden_layers) ** -0.5 * self.config.initializer_factor
        out_std = std * self.config.initializer_factor

        def projection(stddev: float) -> nn.Dense:
            return nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.normal(stddev))

        self.q_proj = projection(in_std)
        self.k_proj = projection(in_std)
        self.v_proj = projection(in_std)
        self.out_proj = projection(out_std)
        self.dropout = nn.Dropout(self.config.attention_dropout)

    def __call__(self, hidden: jax.Array, mask: jax.Array | None, queries: int | None, train: bool) -> jax.Array:
        def split_heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], self.config.num_attention_heads, -1)

        q = split_heads(self.q_proj(hidden[:, :queries]))
        k, v = split_heads(self.k_proj(hidden)), split_heads(self.v_proj(hidden))
        dropout = partial(self.dropout, deterministic=False) if train and self.config.attention_dropout else None
        context = attention(q, k, v, mask, dropout)
        return self.out_proj(context.reshape(*context.shape[:2], -1))


class CLIPMLP(nn.Module):
    config: CLIPTextConfig | CLIPVisionConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        width, factor = self.config.hidden_size, self.config.initializer_factor
        in_std = width**-0.5 * (2 * self.config.num_hidden_layers) ** -0.5 * factor
        out_std = (2 * width) ** -0.5 * factor
        hidden = self.config.intermediate_size
        self.fc1 = nn.Dense(hidden, dtype=self.dtype, kernel_init=nn.initializers.normal(out_std))
        self.fc2 = nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.normal(in_std))

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return self.fc2(activation(self.config.hidden_act)(self.fc1(hidden)))


class CLIPEncoderLayer(nn.Module):
    """A pre-norm transformer block. With ``queries`` set it returns that many leading tokens only."""

    config: CLIPTextConfig | CLIPVisionConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.layer_norm1 = nn.LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype)
        self.self_attn = CLIPAttention(self.config, dtype=self.dtype)
        self.layer_norm2 = nn.LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype)
        self.mlp = CLIPMLP(self.config, dtype=self.dtype)

    def __call__(self, hidden: jax.Array, mask: jax.Array | None, queries: int | None, train: bool) -> jax.Array:
        hidden = hidden[:, :queries] + self.self_attn(self.layer_norm1(hidden), mask, queries, train)
        return hidden + self.mlp(self.layer_norm2(hidden))


class CLIPLayerCollection(nn.Module):
    config: CLIPTextConfig | CLIPVisionConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.layers = [
            CLIPEncoderLayer(self.config, dtype=self.dtype, name=str(i)) for i in range(self.config.num_hidden_layers)
        ]

    def __call__(self, hidden: jax.Array, mask: jax.Array | None, queries: int | None, train: bool) -> jax.Array:
        for layer in self.layers[:-1]:
            hidden = layer(hidden, mask, None, train)
        return self.layers[-1](hidden, mask, queries, train)


class CLIPEncoder(nn.Module):
    config: CLIPTextConfig | CLIPVisionConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.layers = CLIPLayerCollection(self.config, dtype=self.dtype)

    def __call__(
        self, hidden: jax.Array, mask: jax.Array | None = None, queries: int | None = None, train: bool = False
    ) -> jax.Array:
        return self.layers(hidden, mask, queries, train)


class CLIPVisionEmbeddings(nn.Module):
    """Patches, a class token and learned positions."""

    config: CLIPVisionConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = self.param(
            "class_embedding",
            nn.initializers.normal(config.hidden_size**-0.5 * config.initializer_factor),
            (config.hidden_size,),
        )
        init = nn.initializers.normal(config.initializer_range * config.initializer_factor)
        self.patch_embedding = nn.Conv(
            config.hidden_size,
            kernel_size=(config.patch_size, config.patch_size),
            strides=(config.patch_size, config.patch_size),
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            kernel_init=init,
        )
        self.position_embedding = nn.Embed(patches + 1, config.hidden_size, dtype=self.dtype, embedding_init=init)

    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        patches = self.patch_embedding(pixel_values)
        patches = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        token = jnp.broadcast_to(self.class_embedding.astype(patches.dtype), (patches.shape[0], 1, patches.shape[-1]))
        tokens = jnp.concatenate([token, patches], axis=1)
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1]))


class CLIPVisionTransformer(nn.Module):
    """The image tower: float32 [N, H, W, 3] -> BackboneOutput with ``pooler_output`` [N, hidden_size].

    The pooled output reads the class token alone, so with ``pooled_only`` the last block computes that one token;
    the pooled values are the same and ``last_hidden_state`` is None.
    """

    config: CLIPVisionConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.embeddings = CLIPVisionEmbeddings(self.config, dtype=self.dtype)
        self.pre_layrnorm = nn.LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype)
        self.encoder = CLIPEncoder(self.config, dtype=self.dtype)
        self.post_layernorm = nn.LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype)

    def __call__(self, pixel_values: jax.Array, train: bool = False, pooled_only: bool = False) -> BackboneOutput:
        hidden = self.pre_layrnorm(self.embeddings(pixel_values))
        hidden = self.encoder(hidden, queries=1 if pooled_only else None, train=train)
        pooled = self.post_layernorm(hidden[:, 0])
        return BackboneOutput(last_hidden_state=None if pooled_only else hidden, pooler_output=pooled)


class CLIPTextEmbeddings(nn.Module):
    config: CLIPTextConfig
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


class CLIPTextTransformer(nn.Module):
    """The text tower: int [M, length] -> BackboneOutput, pooled at the end-of-text token."""

    config: CLIPTextConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.embeddings = CLIPTextEmbeddings(self.config, dtype=self.dtype)
        self.encoder = CLIPEncoder(self.config, dtype=self.dtype)
        self.final_layer_norm = nn.LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype)

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, train: bool = False
    ) -> BackboneOutput:
        length = input_ids.shape[1]
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, :].astype(bool)
        hidden = self.final_layer_norm(self.encoder(self.embeddings(input_ids), mask, train=train))
        pooled = hidden[jnp.arange(hidden.shape[0]), self._end_of_text(input_ids)]
        return BackboneOutput(last_hidden_state=hidden, pooler_output=pooled)

    def _end_of_text(self, input_ids: jax.Array) -> jax.Array:
        """Position of the end-of-text token in each row.

        OpenAI's own configurations say ``eos_token_id: 2``, which their tokenizer never produces; there the end is
        the highest id of the row. Later checkpoints name the real id, and the first one counts.
        """
        if self.config.eos_token_id == 2:
            return input_ids.argmax(axis=-1)
        return (input_ids == self.config.eos_token_id).argmax(axis=-1)


class CLIPModule(nn.Module):
    """Both towers, their projections and the temperature."""

    config: CLIPConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.text_model = CLIPTextTransformer(config.text_config, dtype=self.dtype)
        self.vision_model = CLIPVisionTransformer(config.vision_config, dtype=self.dtype)

        def projection(width: int) -> nn.Dense:
            init = nn.initializers.normal(width**-0.5 * config.initializer_factor)
            return nn.Dense(config.projection_dim, use_bias=False, dtype=self.dtype, kernel_init=init)

        self.visual_projection = projection(config.vision_config.hidden_size)
        self.text_projection = projection(config.text_config.hidden_size)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(config.logit_scale_init_value), ())

    def __call__(
        self,
        input_ids: jax.Array,
        pixel_values: jax.Array,
        attention_mask: jax.Array | None = None,
        train: bool = False,
    ) -> CLIPOutput:
        """Similarity of every image with every text.

        Args:
            input_ids: int [M, length], padded after the end-of-text token.
            pixel_values: float32 [N, H, W, 3], normalized by the image spec.
            attention_mask: 1 for tokens and 0 for padding, [M, length].
            train: apply attention dropout (needs the ``dropout`` rng).
        """
        vision = self.vision_model(pixel_values, train=train)
        text = self.text_model(input_ids, attention_mask, train=train)
        image_embeds = _unit(self.visual_projection(vision.pooler_output))
        text_embeds = _unit(self.text_projection(text.pooler_output))
        logits = jnp.exp(self.logit_scale) * (image_embeds @ text_embeds.T).astype(jnp.float32)
        return CLIPOutput(
            logits_per_image=logits,
            logits_per_text=logits.T,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            vision_model_output=vision,
            text_model_output=text,
        )

    def get_image_features(self, pixel_values: jax.Array) -> jax.Array:
        """Projected image embeddings [N, projection_dim], not normalized."""
        return self.visual_projection(self.vision_model(pixel_values, pooled_only=True).pooler_output)

    def get_text_features(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Projected text embeddings [M, projection_dim], not normalized."""
        return self.text_projection(self.text_model(input_ids, attention_mask).pooler_output)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
