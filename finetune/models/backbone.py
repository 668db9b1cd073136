"""Pretrained models as backbones: module, variables, image spec, and the text tower where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from finetune.errors import ModelError
from finetune.images.spec import ImageSpec
from finetune.models.family import Family
from finetune.models.layers.base import l2_normalize
from finetune.models.pretrained import Pretrained, find_reader, read_pretrained
from finetune.models.pretrained_head import PretrainedHead, read_head
from finetune.models.surgery import TransferReport, extract_submodule
from finetune.models.tokenizer import load_tokenizer, tokenize
from finetune.page.facts import ShownByFacts, dimensions
from finetune.trees import count_values
from finetune.weights.layout import open_checkpoint
from finetune.weights.license import read_license
from finetune.weights.locate import locate

_TEXTS = 4096  # embedded at once


@dataclass(frozen=True, repr=False)
class Clip(Pretrained):
    """A CLIP, or a model like it, with both towers.

    ``.module`` is a CLIPModule or SiglipModule, whose ``.apply(variables, input_ids, pixel_values)`` returns logits and
    embeddings; ``.config`` has ``vision_config`` and ``text_config``.
    """

    @property
    def image_projection(self) -> jax.Array:
        """float32 [num_features, width]: maps pooled image features into the towers' shared embedding space."""
        projection = self.variables["params"].get("visual_projection")
        if projection is None:  # pooled features are embeddings already
            return jnp.eye(self.config.vision_config.num_features)
        return projection["kernel"]

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, loaded by transformers' AutoTokenizer.

        Raises:
            ModelError: the checkpoint has no tokenizer, or one that cannot be read.
        """
        return load_tokenizer(self.folder)

    def embed_texts(self, texts: Sequence[str]) -> jax.Array:
        """Text embeddings of length one, float32 [texts, width]; texts beyond the tower's length are truncated.

        Raises:
            ModelError: the tokenizer cannot be read, or does not belong to the text tower; or one is no text.
        """
        parts = [self._embed(texts[i : i + _TEXTS]) for i in range(0, len(texts), _TEXTS)]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    def _embed(self, texts: Sequence[str]) -> jax.Array:
        ids, mask = tokenize(self.tokenizer, self.config.text_config, texts, self.folder)
        return self._embedding(self.variables, ids, mask)

    @cached_property
    def _embedding(self) -> Callable[..., jax.Array]:
        def embed(variables: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
            features: Any = self.module.apply(variables, ids, mask, method="get_text_features")
            return l2_normalize(features)

        return jax.jit(embed)


@dataclass(frozen=True, repr=False)
class Backbone(ShownByFacts):
    """A pretrained vision model without its task head.

    Attributes:
        module: Linen; ``module.apply(variables, pixel_values, train=False)`` takes float32 [N, H, W, 3] and returns
            a BackboneOutput.
        variables: ``{"params": ..., "batch_stats": ... where it has them}``, float32.
        config: the module's configuration, a frozen dataclass.
        image_spec: how its images are prepared.
        num_features: width of ``pooler_output``.
        text: the CLIP or SigLIP that it is the vision tower of, for zero-shot heads; None where there is no text tower.
        report: where each tensor of the checkpoint went.
        family: its name in the registry, from which a saved bundle rebuilds the module.
        layout: the library whose files the checkpoint has: transformers, timm or open_clip.
        head: the linear classifier that the checkpoint has on these features; None where it has none.
        license: that its files state; None where they state none.
    """

    module: nn.Module
    variables: dict[str, Any]
    config: Any
    image_spec: ImageSpec
    num_features: int
    text: Clip | None
    report: TransferReport
    family: str
    layout: str
    head: PretrainedHead | None = None
    license: str | None = None

    def _facts(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "layout": self.layout,
            "parameters": count_values(self.variables["params"]),
            "images": dimensions(self.image_spec.shape),
            "num_features": self.num_features,
            "text_tower": self.text is not None,
            "head_classes": None if self.head is None else len(self.head.bias),
            "license": self.license,
        }


def load_backbone(
    source: str | Path,
    *,
    revision: str | None = None,
    submodule: str | None = None,
    image_size: int | None = None,
    dtype: Any = None,
    dropout: float | None = None,
    drop_path: float | None = None,
) -> Backbone:
    """Loads the vision model of a pretrained checkpoint.

    Args:
        source: a folder in the layout of transformers, timm or open_clip; a hub id ``owner/name[@revision]``; or
            ``builtin:tiny-clip``.
        revision: branch, tag or commit of a hub id.
        submodule: path of the part to use inside a model with two towers; by default ``vision_model``. It has to take
            images.
        image_size: edge in pixels; by default the checkpoint's. Learned positions are interpolated as the library
            that made the checkpoint does it; the image spec's resize rule scales with it.
        dtype: compute dtype; float32 by default. Parameters and running statistics stay float32.
        dropout: rate inside the model during training; by default the checkpoint's.
        drop_path: rate of stochastic depth of the last block during training; by default the checkpoint's.

    Raises:
        ModelError: there is no checkpoint, it is damaged, or its model is not supported.
        TransferError: its tensors do not fit its configuration.
    """
    checkpoint = open_checkpoint(locate(source, revision))
    family, reader = find_reader(checkpoint)
    pretrained, family = read_pretrained(checkpoint, family, reader, image_size=image_size, dtype=dtype)
    module, variables, config, text = pretrained.module, pretrained.variables, pretrained.config, None
    if hasattr(config, "text_config"):  # both towers
        text, config = Clip(**vars(pretrained)), config.vision_config
        module, variables = extract_submodule(module, variables, submodule or "vision_model")
        if not isinstance(module, family.module):
            raise ModelError(
                f"submodule: {submodule!r} is a {type(module).__name__}, which does not take images; choose a "
                f"{family.module.__name__}, such as vision_model"
            )
    elif submodule is not None:
        raise ModelError(
            f"submodule: {checkpoint.folder} is a vision model without a text tower, so there is no {submodule!r} to "
            "choose; leave submodule out"
        )
    if dropout is not None or drop_path is not None:
        config = _replace_rates(config, family, dropout=dropout, drop_path=drop_path)
        module = module.clone(config=config)
    return Backbone(
        module=module,
        variables=variables,
        config=config,
        image_spec=pretrained.image_spec,
        num_features=config.num_features,
        text=text,
        report=pretrained.report,
        family=family.name,
        layout=checkpoint.layout,
        head=read_head(checkpoint, reader.head, config.num_features) if reader.head else None,
        license=read_license(checkpoint),
    )


def load_clip(
    source: str | Path, *, revision: str | None = None, image_size: int | None = None, dtype: Any = None
) -> Clip:
    """Loads both towers of a CLIP or SigLIP checkpoint; arguments and errors as in :func:`load_backbone`."""
    checkpoint = open_checkpoint(locate(source, revision), prefer_open_clip=True)
    family, reader = find_reader(checkpoint)
    pretrained, _ = read_pretrained(checkpoint, family, reader, image_size=image_size, dtype=dtype)
    if not hasattr(pretrained.config, "text_config"):
        raise ModelError(
            f"{checkpoint.folder}: not a CLIP with both towers: {checkpoint.file.name} says {checkpoint.model_type!r}, "
            "a vision model; load it with load_backbone"
        )
    return Clip(**vars(pretrained))


def _replace_rates(config: Any, family: Family, **rates: float | None) -> Any:
    for option, rate in rates.items():
        if rate is None:
            continue
        if not 0 <= rate < 1:
            raise ModelError(f"{option}: needs a rate of at least 0 and below 1; received {rate}")
        field = "drop_path_rate" if option == "drop_path" else option
        if not hasattr(config, field):
            raise ModelError(
                f"{option}: {family.title} has no {option} layers; dropout in front of the head is set on the head"
            )
        config = replace(config, **{field: rate})
    return config
