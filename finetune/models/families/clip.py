"""CLIP (Radford et al. 2021, arXiv:2103.00020) in Flax Linen.

All parameters have the paths that they have in ``FlaxCLIPModule`` of transformers 4.57, so that the two can exchange
parameters.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import log
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from finetune.errors import ModelError
from finetune.models.families.vit import read_timm
from finetune.models.family import Family, Reader, Reading, parse_transformers
from finetune.models.layers.base import BackboneOutput, l2_normalize
from finetune.models.layers.text import TextConfig, TextEmbeddings
from finetune.models.layers.transformer import Encoder, VisionTransformer, ViTConfig
from finetune.weights.names import Drop, Rename, Row, Split, convolution, linear, scalar, weight_and_bias


@dataclass(frozen=True)
class CLIPConfig:
    """Both towers and the embedding space that they share.

    Attributes:
        projection_dim: width of the embeddings.
        logit_scale_init_value: initial value of log(1 / temperature).
        initializer_factor: scales the initial weights.
    """

    vision_config: ViTConfig
    text_config: TextConfig
    projection_dim: int = 512
    logit_scale_init_value: float = log(1 / 0.07)
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
    """The text tower: int [M, length] -> BackboneOutput, pooled at the end-of-text token."""

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
        mask = jnp.tril(jnp.ones((1, 1, length, length), bool))
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, :].astype(bool)
        hidden = self.final_layer_norm(self.encoder(self.embeddings(input_ids), mask, train=train))
        pooled = hidden[jnp.arange(hidden.shape[0]), self._end_of_text(input_ids)]
        return BackboneOutput(last_hidden_state=hidden, pooler_output=pooled)

    def _end_of_text(self, input_ids: jax.Array) -> jax.Array:
        """Position of the end-of-text token in each row, int [M].

        OpenAI's configurations say ``eos_token_id: 2``, which their tokenizer never produces; there the end-of-text
        token is the highest id in the row. Later checkpoints name the real id; its first occurrence counts.
        """
        if self.config.eos_token_id == 2:
            return input_ids.argmax(axis=-1)
        return jnp.equal(input_ids, self.config.eos_token_id).argmax(axis=-1)


class CLIPModule(nn.Module):
    """Both towers, their projections and the temperature."""

    config: CLIPConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.text_model = CLIPTextTransformer(config.text_config, dtype=self.dtype)
        self.vision_model = VisionTransformer(config.vision_config, dtype=self.dtype)

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
            attention_mask: [M, length], 1 for tokens and 0 for padding.
            train: apply attention dropout (needs the ``dropout`` rng).
        """
        vision = self.vision_model(pixel_values, train=train)
        text = self.text_model(input_ids, attention_mask, train=train)
        features = self.visual_projection(vision.pooler_output), self.text_projection(text.pooler_output)
        return compare_embeddings(vision, text, *features, self.logit_scale)

    def get_image_features(self, pixel_values: jax.Array) -> jax.Array:
        """Image embeddings [N, projection_dim], not normalized."""
        return self.visual_projection(self.vision_model(pixel_values, pooled_only=True).pooler_output)

    def get_text_features(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Text embeddings [M, projection_dim], not normalized."""
        return self.text_projection(self.text_model(input_ids, attention_mask).pooler_output)


# transformers' tensor names. Order matters: the first matching row applies.
NAMES: tuple[Row, ...] = (
    Drop(r".*\.position_ids"),
    Rename(r"(.*\bpatch_embedding)\.weight", r"\1.kernel", convolution),
    Rename(r"(.*\b(?:token|position)_embedding)\.weight", r"\1.embedding"),
    Rename(r"(.*norm[12]?)\.weight", r"\1.scale"),
    Rename(r"(.*(?:_proj|_projection|\bfc[12]))\.weight", r"\1.kernel", linear),
    Rename(r"(.*\b(?:bias|class_embedding))", r"\1"),
    Rename(r"(.*\blogit_scale)", r"\1", scalar),
)
# A vision tower saved alone: transformers before version 5 wrote a prefix. The projection is not part of the tower.
VISION_NAMES: tuple[Row, ...] = (
    Drop(r"visual_projection\.weight"),
    *(replace(row, pattern=rf"(?:vision_model\.)?{row.pattern}") for row in NAMES),
)


def _open_clip_block(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of one tower's blocks, whose names begin with ``theirs`` in open_clip and with ``ours`` here."""
    block, layer = rf"{theirs}\.resblocks\.(\d+)\.", rf"{ours}.encoder.layers.\1."
    packed = tuple(rf"{layer}self_attn.{letter}_proj." for letter in "qkv")
    return (
        *weight_and_bias(rf"{block}ln_([12])", rf"{layer}layer_norm\2", "scale"),
        Split(rf"{block}attn\.in_proj_weight", tuple(f"{path}kernel" for path in packed), linear),
        Split(rf"{block}attn\.in_proj_bias", tuple(f"{path}bias" for path in packed)),
        *weight_and_bias(rf"{block}attn\.out_proj", rf"{layer}self_attn.out_proj", "kernel", linear),
        *weight_and_bias(rf"{block}mlp\.c_fc", rf"{layer}mlp.fc1", "kernel", linear),
        *weight_and_bias(rf"{block}mlp\.c_proj", rf"{layer}mlp.fc2", "kernel", linear),
    )


OPEN_CLIP_NAMES: tuple[Row, ...] = (
    Drop(r"(?:text\.)?attn_mask"),
    Rename(r"logit_scale", r"logit_scale", scalar),
    Rename(r"visual\.class_embedding", r"vision_model.embeddings.class_embedding"),
    Rename(r"visual\.conv1\.weight", r"vision_model.embeddings.patch_embedding.kernel", convolution),
    Rename(r"visual\.positional_embedding", r"vision_model.embeddings.position_embedding.embedding"),
    *weight_and_bias(r"visual\.ln_pre", r"vision_model.pre_layrnorm", "scale"),
    *weight_and_bias(r"visual\.ln_post", r"vision_model.post_layernorm", "scale"),
    Rename(r"visual\.proj", r"visual_projection.kernel"),
    *_open_clip_block(r"visual\.transformer", "vision_model"),
    Rename(r"(?:text\.)?token_embedding\.weight", r"text_model.embeddings.token_embedding.embedding"),
    Rename(r"(?:text\.)?positional_embedding", r"text_model.embeddings.position_embedding.embedding"),
    *weight_and_bias(r"(?:text\.)?ln_final", r"text_model.final_layer_norm", "scale"),
    Rename(r"(?:text\.)?text_projection", r"text_projection.kernel"),
    *_open_clip_block(r"(?:text\.)?transformer", "text_model"),
)


def from_transformers(config: Any) -> CLIPConfig:
    """Translates a CLIPConfig of transformers."""
    return CLIPConfig(
        vision_config=_vision(config.vision_config),
        text_config=TextConfig(
            **_encoder(config.text_config),
            vocab_size=config.text_config.vocab_size,
            max_position_embeddings=config.text_config.max_position_embeddings,
            eos_token_id=config.text_config.eos_token_id,
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


def _read_both(config: dict[str, Any], names: Collection[str]) -> Reading:
    return Reading(from_transformers(parse_transformers("CLIPConfig", config)), NAMES)


def _read_vision(config: dict[str, Any], names: Collection[str]) -> Reading:
    return Reading(_vision(parse_transformers("CLIPVisionConfig", config)), VISION_NAMES)


# The defaults of open_clip's own towers. Any other option would change what they compute, and is refused.
_OPEN_CLIP_VISION = {
    "image_size": 224,
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
}
_OPEN_CLIP_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
_DEFAULT_VALUES = ("tok", "argmax", "learnable")  # open_clip's default pooling and positions, where a file names them
_NO_EFFECT = {"patch_dropout", "hf_tokenizer_name", "tokenizer_kwargs", "output_tokens"}  # on evaluation


def _read_open_clip(config: dict[str, Any], names: Collection[str]) -> Reading:
    model = config["model_cfg"]
    vision = _with_defaults(model["vision_cfg"], _OPEN_CLIP_VISION, "vision_cfg")
    text = _with_defaults(model["text_cfg"], _OPEN_CLIP_TEXT, "text_cfg")
    shared = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu", "layer_norm_eps": 1e-5}

    def tower(sizes: dict[str, Any], heads: int) -> dict[str, Any]:
        return shared | {
            "hidden_size": sizes["width"],
            "intermediate_size": int(sizes["width"] * sizes["mlp_ratio"]),
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": heads,
        }

    return Reading(
        CLIPConfig(
            vision_config=ViTConfig(
                **tower(vision, vision["width"] // vision["head_width"]),
                image_size=vision["image_size"],
                patch_size=vision["patch_size"],
                patch_bias=False,
                pre_norm=True,
                norm_after_pool=True,
            ),
            text_config=TextConfig(
                **tower(text, text["heads"]),
                vocab_size=text["vocab_size"],
                max_position_embeddings=text["context_length"],
                eos_token_id=2,  # open_clip pools at the highest id in the row
            ),
            projection_dim=model["embed_dim"],
        ),
        OPEN_CLIP_NAMES,
    )


def _with_defaults(tower: dict[str, Any], defaults: dict[str, Any], name: str) -> dict[str, Any]:
    unsupported = sorted(
        key for key in tower.keys() - defaults.keys() - _NO_EFFECT if tower[key] and tower[key] not in _DEFAULT_VALUES
    )
    if unsupported:
        raise ModelError(f"model_cfg.{name}: not supported: {', '.join(unsupported)}; supported: {', '.join(defaults)}")
    return {**defaults, **tower}


FAMILY = Family(
    name="clip",
    title="CLIP",
    module=VisionTransformer,
    config=ViTConfig,
    license="MIT (OpenAI, OpenCLIP); CC-BY-NC-4.0 (MetaCLIP)",
    readers=(
        Reader("transformers", "clip", _read_both, "CLIP", module=CLIPModule, verified=("features", "text features")),
        Reader("transformers", "clip_vision_model", _read_vision, "CLIP", verified=("features", "other image sizes")),
        Reader(
            "open_clip",
            "open_clip",
            _read_open_clip,
            module=CLIPModule,
            antialias=True,
            label="open_clip's own ViT and text towers",
            verified=("features", "other image sizes", "text features"),
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
