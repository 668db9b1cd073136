"""SigLIP (Zhai et al. 2023, arXiv:2303.15343) and SigLIP 2 at fixed resolution (Tschannen et al. 2025,
arXiv:2502.14786): CLIP with a sigmoid for every pair, attention pooling, and text pooled at the last token."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.models.families.clip import CLIPOutput, compare_embeddings, pooled_features
from finetune.models.families.vit import read_timm
from finetune.models.family import Family, Reader, Reading, parse_transformers
from finetune.models.layers.base import BackboneOutput
from finetune.models.layers.text import TextConfig, TextEmbeddings
from finetune.models.layers.transformer import Encoder
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.weights.names import Drop, Rename, Row, Split, convolution, flat, linear, scalar, weight_and_bias


@dataclass(frozen=True)
class SiglipConfig:
    """Both towers."""

    vision_config: ViTConfig
    text_config: TextConfig


class SiglipTextTransformer(nn.Module):
    """The text tower: int [M, length], padded to full length -> BackboneOutput, pooled at the last token."""

    config: TextConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.embeddings = TextEmbeddings(self.config, dtype=self.dtype)
        self.encoder = Encoder(self.config, dtype=self.dtype)
        self.final_layer_norm = nn.LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype)
        self.head = nn.Dense(self.config.projection_size or self.config.hidden_size, dtype=self.dtype)

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, train: bool = False
    ) -> BackboneOutput:
        mask = None if attention_mask is None else attention_mask[:, None, None, :].astype(bool)
        hidden = self.final_layer_norm(self.encoder(self.embeddings(input_ids), mask, train=train))
        return BackboneOutput(last_hidden_state=hidden, pooler_output=self.head(hidden[:, -1]))


class SiglipModule(nn.Module):
    """Both towers, the temperature and the bias; ``vision_class`` is the class of the vision tower."""

    config: SiglipConfig
    dtype: jnp.dtype = jnp.float32
    vision_class: type[nn.Module] = VisionTransformer

    def setup(self) -> None:
        self.text_model = SiglipTextTransformer(self.config.text_config, dtype=self.dtype)
        self.vision_model = self.vision_class(self.config.vision_config, dtype=self.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.3026), ())
        self.logit_bias = self.param("logit_bias", nn.initializers.constant(-10.0), ())

    def __call__(
        self,
        input_ids: jax.Array,
        pixel_values: jax.Array,
        attention_mask: jax.Array | None = None,
        train: bool = False,
    ) -> CLIPOutput:
        """Similarity of every image with every text; the sigmoid of a logit is the probability that they match.

        Args:
            input_ids: int [M, length], padded to ``max_position_embeddings`` as in training.
            pixel_values: float32 [N, H, W, 3], normalized by the image spec.
            attention_mask: [M, length], 1 for tokens and 0 for padding; SigLIP was trained without one.
            train: apply dropout (needs the ``dropout`` rng).
        """
        vision = self.vision_model(pixel_values, train=train)
        text = self.text_model(input_ids, attention_mask, train=train)
        features = vision.pooler_output, text.pooler_output
        return compare_embeddings(vision, text, *features, self.logit_scale, self.logit_bias)

    def get_image_features(self, pixel_values: jax.Array) -> jax.Array:
        """Image embeddings [N, width], not normalized."""
        return pooled_features(self.vision_model, pixel_values)

    def get_text_features(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Text embeddings [M, width], not normalized."""
        return self.text_model(input_ids, attention_mask).pooler_output


_HEAD, _POOLER = r"(.*)head\.", r"\1pooler."
NAMES: tuple[Row, ...] = (
    Drop(r"(?:.*\.)?position_ids|classifier\..*"),
    Rename(r"(logit_scale|logit_bias)", r"\1", scalar),
    *weight_and_bias(r"text_model\.head", r"text_model.head", "kernel", linear),
    Rename(rf"{_HEAD}probe", rf"{_POOLER}probe", flat),
    Split(rf"{_HEAD}attention\.in_proj_weight", tuple(f"{_POOLER}attention.{x}_proj.kernel" for x in "qkv"), linear),
    Split(rf"{_HEAD}attention\.in_proj_bias", tuple(f"{_POOLER}attention.{x}_proj.bias" for x in "qkv")),
    Rename(rf"{_HEAD}layernorm\.weight", rf"{_POOLER}layernorm.scale"),
    Rename(rf"{_HEAD}(attention\.out_proj|mlp\.fc[12])\.weight", rf"{_POOLER}\2.kernel", linear),
    Rename(rf"{_HEAD}(.*\.bias)", rf"{_POOLER}\2"),
    Rename(r"(.*\bpatch_embedding)\.weight", r"\1.kernel", convolution),
    Rename(r"(.*\b(?:token|position)_embedding)\.weight", r"\1.embedding"),
    Rename(r"(.*norm[12]?)\.weight", r"\1.scale"),
    Rename(r"(.*(?:_proj|\bfc[12]))\.weight", r"\1.kernel", linear),
    Rename(r"(.*\bbias)", r"\1"),
)
# A vision tower saved alone: transformers before version 5 wrote a prefix, and classifiers have it.
VISION_NAMES: tuple[Row, ...] = (
    Drop(r"logit_scale|logit_bias"),
    *(replace(row, pattern=rf"(?:vision_model\.)?(?:{row.pattern})") for row in NAMES),
)


def _encoder(config: Any) -> dict[str, Any]:
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    return {key: getattr(config, key) for key in (*same, "layer_norm_eps", "attention_dropout")}


def _vision(config: Any) -> ViTConfig:
    return ViTConfig(
        **_encoder(config),
        image_size=config.image_size,
        patch_size=config.patch_size,
        class_token=False,
        pooling="attention" if getattr(config, "vision_use_head", True) else "mean",
    )


def _read_both(config: dict[str, Any], names: Collection[str]) -> Reading:
    """Both towers, or the vision tower alone where there is no other, as in an image classifier."""
    parsed = parse_transformers("SiglipConfig", config)
    if not any(name.startswith("text_model.") for name in names):
        return Reading(_vision(parsed.vision_config), VISION_NAMES)
    text = TextConfig(
        **_encoder(parsed.text_config),
        vocab_size=parsed.text_config.vocab_size,
        max_position_embeddings=parsed.text_config.max_position_embeddings,
        projection_size=getattr(parsed.text_config, "projection_size", None),
    )
    return Reading(SiglipConfig(_vision(parsed.vision_config), text), NAMES)


def _read_vision(config: dict[str, Any], names: Collection[str]) -> Reading:
    return Reading(_vision(parse_transformers("SiglipVisionConfig", config)), VISION_NAMES)


FAMILY = Family(
    name="siglip",
    title="SigLIP, SigLIP 2",
    module=VisionTransformer,
    config=ViTConfig,
    license="Apache-2.0",
    refused={
        r"siglip2(_vision_model)?": (
            "a SigLIP 2 of the NaFlex kind, whose images keep their aspect ratio; those of fixed resolution are "
            "supported, such as google/siglip2-base-patch16-224"
        )
    },
    readers=(
        Reader(
            "transformers",
            "siglip",
            _read_both,
            "Siglip",
            module=SiglipModule,
            verified=("features", "other image sizes", "text features"),
        ),
        Reader("transformers", "siglip_vision_model", _read_vision, "Siglip", verified=("features",)),
        Reader(
            "timm",
            r"vit_[a-z0-9]+_patch\d+_siglip(_gap)?_\d+",
            read_timm,
            antialias=True,
            label="vit_*_siglip_*, vit_*_siglip_gap_*",
            verified=("features",),
        ),
    ),
)
