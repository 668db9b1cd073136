"""CLIP (Radford et al. 2021, arXiv:2103.00020) and MetaCLIP 2 (Chuang et al. 2025, arXiv:2507.22062) in Flax Linen.

All parameters have the paths that they have in ``FlaxCLIPModule`` of transformers 4.57, so that the two can exchange
parameters.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from finetune.models.families.vit import read_timm
from finetune.models.family import Family, Reader, Reading, parse_transformers
from finetune.models.layers.base import BackboneOutput, l2_normalize
from finetune.models.layers.text import TextConfig, TextEmbeddings
from finetune.models.layers.transformer import Encoder
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.weights.names import Drop, Rename, Row, convolution, linear, scalar


@dataclass(frozen=True)
class CLIPConfig:
    """Both towers and the embedding space that they share.

    Attributes:
        vision_config: a ViTConfig, or the configuration of another family's vision module.
        projection_dim: width of the embeddings.
        visual_projection, text_projection: a linear layer maps the tower's pooled output to an embedding; without it,
            that is the embedding.
        text_projection_bias: the text tower's has a bias.
        logit_scale_init_value: initial value of log(1 / temperature).
        logit_bias_init_value: initial value of what is added to all logits; None where there is no such parameter.
        initializer_factor: scales the initial weights.
    """

    vision_config: Any
    text_config: TextConfig
    projection_dim: int = 512
    visual_projection: bool = True
    text_projection: bool = True
    text_projection_bias: bool = False
    logit_scale_init_value: float = log(1 / 0.07)
    logit_bias_init_value: float | None = None
    initializer_factor: float = 1.0


@struct.dataclass
class CLIPOutput:
    """Similarities and embeddings of N images and M texts.

    Attributes:
        logits_per_image: float32 [N, M], cosine similarity times ``exp(logit_scale)``; logits_per_text its transpose.
        image_embeds, text_embeds: unit vectors, [N, projection_dim] and [M, projection_dim].
        vision_model_output, text_model_output: the outputs of the towers.
    """

    logits_per_image: jax.Array
    logits_per_text: jax.Array
    image_embeds: jax.Array
    text_embeds: jax.Array
    vision_model_output: BackboneOutput
    text_model_output: BackboneOutput


def compare_embeddings(
    vision: BackboneOutput,
    text: BackboneOutput,
    image_features: jax.Array,
    text_features: jax.Array,
    logit_scale: jax.Array,
    logit_bias: jax.Array | float = 0.0,
) -> CLIPOutput:
    """Similarity of every image with every text.

    Args:
        vision, text: the outputs of the towers.
        image_features, text_features: [N, width] and [M, width], not normalized.
        logit_scale: log(1 / temperature).
        logit_bias: added to every logit.
    """
    image_embeds, text_embeds = l2_normalize(image_features), l2_normalize(text_features)
    logits = jnp.exp(logit_scale) * (image_embeds @ text_embeds.T).astype(jnp.float32) + logit_bias
    return CLIPOutput(
        logits_per_image=logits,
        logits_per_text=logits.T,
        image_embeds=image_embeds,
        text_embeds=text_embeds,
        vision_model_output=vision,
        text_model_output=text,
    )


class CLIPTextTransformer(nn.Module):
    """The text tower: int [M, length] -> BackboneOutput, pooled as ``pooling`` says."""

    config: TextConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.embeddings = TextEmbeddings(self.config, dtype=self.dtype)
        self.encoder = Encoder(self.config, dtype=self.dtype)
        self.final_layer_norm = nn.LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype)

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, train: bool = False
    ) -> BackboneOutput:
        length = input_ids.shape[1]
        mask = jnp.ones((1, 1, length, length), bool)
        mask = jnp.tril(mask) if self.config.causal else mask
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, :].astype(bool)
        hidden = self.final_layer_norm(self.encoder(self.embeddings(input_ids), mask, train=train))
        return BackboneOutput(last_hidden_state=hidden, pooler_output=self._pool(hidden, input_ids, attention_mask))

    def _pool(self, hidden: jax.Array, input_ids: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
        if self.config.pooling != "mean":
            return hidden[jnp.arange(hidden.shape[0]), self._position(input_ids)]
        if attention_mask is None:
            return hidden.mean(axis=1)
        return hidden.mean(axis=1, where=attention_mask[..., None].astype(bool))

    def _position(self, input_ids: jax.Array) -> jax.Array | int:
        """Position of the token that is pooled, int [M], or the same in each row."""
        if self.config.pooling != "end":
            return {"first": 0, "last": -1}[self.config.pooling]
        if self.config.eos_token_id is None:
            return input_ids.argmax(axis=-1)
        return jnp.equal(input_ids, self.config.eos_token_id).argmax(axis=-1)


class CLIPModule(nn.Module):
    """Both towers, their projections and the temperature.

    Attributes:
        vision_class: the class of the vision tower, which ``config.vision_config`` configures.
    """

    config: CLIPConfig
    dtype: jnp.dtype = jnp.float32
    vision_class: type[nn.Module] = VisionTransformer

    def setup(self) -> None:
        config = self.config
        self.text_model = CLIPTextTransformer(config.text_config, dtype=self.dtype)
        self.vision_model = self.vision_class(config.vision_config, dtype=self.dtype)

        def projection(width: int, bias: bool = False) -> nn.Dense:
            init = nn.initializers.normal(width**-0.5 * config.initializer_factor)
            return nn.Dense(config.projection_dim, use_bias=bias, dtype=self.dtype, kernel_init=init)

        if config.visual_projection:
            self.visual_projection = projection(config.vision_config.num_features)
        if config.text_projection:
            self.text_projection = projection(config.text_config.hidden_size, config.text_projection_bias)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(config.logit_scale_init_value), ())
        if config.logit_bias_init_value is not None:
            self.logit_bias = self.param("logit_bias", nn.initializers.constant(config.logit_bias_init_value), ())

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
            attention_mask: [M, length], 1 for tokens and 0 for padding.
            train: apply dropout (needs the ``dropout`` rng), and let the vision tower train.
        """
        vision = self.vision_model(pixel_values, train=train)
        text = self.text_model(input_ids, attention_mask, train=train)
        features = self._project_image(vision.pooler_output), self._project_text(text.pooler_output)
        bias = 0.0 if self.config.logit_bias_init_value is None else self.logit_bias
        return compare_embeddings(vision, text, *features, self.logit_scale, bias)

    def get_image_features(self, pixel_values: jax.Array) -> jax.Array:
        """Image embeddings [N, projection_dim], not normalized."""
        return self._project_image(pooled_features(self.vision_model, pixel_values))

    def get_text_features(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Text embeddings [M, projection_dim], not normalized."""
        return self._project_text(self.text_model(input_ids, attention_mask).pooler_output)

    def _project_image(self, pooled: jax.Array) -> jax.Array:
        return self.visual_projection(pooled) if self.config.visual_projection else pooled

    def _project_text(self, pooled: jax.Array) -> jax.Array:
        return self.text_projection(pooled) if self.config.text_projection else pooled


def pooled_features(vision_model: nn.Module, pixel_values: jax.Array) -> jax.Array:
    """``pooler_output`` of a vision tower, without what it need not compute for that."""
    if isinstance(vision_model, VisionTransformer):
        return vision_model(pixel_values, pooled_only=True).pooler_output
    return vision_model(pixel_values).pooler_output


# transformers' tensor names. Order matters: the first matching row applies.
NAMES: tuple[Row, ...] = (
    Drop(r"(?:.*\.)?position_ids|logit_bias|classifier\..*"),
    Rename(r"(.*\bpatch_embedding)\.weight", r"\1.kernel", convolution),
    Rename(r"(.*\b(?:token|position)_embedding)\.weight", r"\1.embedding"),
    Rename(r"(.*norm[12]?)\.weight", r"\1.scale"),
    Rename(r"(.*(?:_proj|_projection|\bfc[12]))\.weight", r"\1.kernel", linear),
    Rename(r"(.*\b(?:bias|class_embedding))", r"\1"),
    Rename(r"(.*\blogit_scale)", r"\1", scalar),
)
# A vision tower saved alone: transformers before version 5 wrote a prefix, and classifiers have it. The projection is
# not part of the tower.
VISION_NAMES: tuple[Row, ...] = (
    Drop(r"visual_projection\.weight|logit_scale"),
    *(replace(row, pattern=rf"(?:vision_model\.)?(?:{row.pattern})") for row in NAMES),
)


def from_transformers(config: Any) -> CLIPConfig:
    """Translates a CLIPConfig or MetaClip2Config of transformers.

    OpenAI's configurations say ``eos_token_id: 2``, which their tokenizer never produces; there the end-of-text token
    is the highest id in the row. To MetaCLIP 2 it is 2 indeed.
    """
    text = config.text_config
    legacy = text.eos_token_id == 2 and config.model_type == "clip"
    return CLIPConfig(
        vision_config=_vision(config.vision_config),
        text_config=TextConfig(
            **_encoder(text),
            vocab_size=text.vocab_size,
            max_position_embeddings=text.max_position_embeddings,
            eos_token_id=None if legacy else text.eos_token_id,
        ),
        projection_dim=config.projection_dim,
        logit_scale_init_value=config.logit_scale_init_value,
        initializer_factor=config.initializer_factor,
    )


def _vision(config: Any) -> ViTConfig:
    return ViTConfig(
        **_encoder(config),
        image_size=config.image_size,
        patch_size=config.patch_size,
        patch_bias=False,
        pre_norm=True,
        norm_after_pool=True,
    )


def _encoder(config: Any) -> dict[str, Any]:
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    return {key: getattr(config, key) for key in (*same, "layer_norm_eps", "attention_dropout", "initializer_factor")}


def _read_both(kind: str, config: dict[str, Any], names: Collection[str]) -> Reading:
    """Both towers, or the vision tower alone where there is no other, as in an image classifier.

    Args:
        kind: of transformers' configuration classes, such as ``CLIP``.
    """
    parsed = parse_transformers(f"{kind}Config", config)
    if not any(name.startswith("text_model.") for name in names):
        return Reading(_vision(parsed.vision_config), VISION_NAMES)
    return Reading(from_transformers(parsed), NAMES)


def _read_vision(kind: str, config: dict[str, Any], names: Collection[str]) -> Reading:
    return Reading(_vision(parse_transformers(f"{kind}VisionConfig", config)), VISION_NAMES)


FAMILY = Family(
    name="clip",
    title="CLIP, MetaCLIP 2",
    module=VisionTransformer,
    config=ViTConfig,
    license="MIT (OpenAI); CC-BY-NC-4.0 (MetaCLIP)",
    readers=(
        Reader(
            "transformers",
            "clip",
            partial(_read_both, "CLIP"),
            "CLIP",
            module=CLIPModule,
            verified=("features", "text features"),
        ),
        Reader(
            "transformers",
            "clip_vision_model",
            partial(_read_vision, "CLIP"),
            "CLIP",
            verified=("features", "other image sizes"),
        ),
        Reader(
            "transformers",
            "metaclip_2",
            partial(_read_both, "MetaClip2"),
            "CLIP",
            module=CLIPModule,
            verified=("features", "text features"),
        ),
        Reader(
            "transformers",
            "metaclip_2_vision_model",
            partial(_read_vision, "MetaClip2"),
            "CLIP",
            verified=("features", "other image sizes"),
        ),
        Reader(
            "timm",
            r"vit_[a-z]+_patch\d+_clip(_quickgelu)?_\d+",
            read_timm,
            antialias=True,
            label="vit_*_clip_*, vit_*_clip_quickgelu_*",
            verified=("features",),
        ),
    ),
)
