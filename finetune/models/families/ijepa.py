"""I-JEPA (Assran et al. 2023, arXiv:2301.08243): a Vision Transformer without a class token."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from finetune.models.families.vit import block_rows, embedding_rows, encoder_fields
from finetune.models.family import Family, Reader, Reading, parse_transformers
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.weights.names import Row

_PREFIX = r"(?:ijepa\.)?"  # where the model was saved with a classifier
NAMES: tuple[Row, ...] = (
    *embedding_rows(_PREFIX),
    *block_rows(_PREFIX, ("layernorm_before", "layernorm_after"), (r"intermediate\.dense", r"output\.dense")),
)


def _read(config: dict[str, Any], names: Collection[str]) -> Reading:
    parsed = parse_transformers("IJepaConfig", config)
    module_config = ViTConfig(
        **encoder_fields(parsed), intermediate_size=parsed.intermediate_size, class_token=False, pooling="mean"
    )
    return Reading(module_config, NAMES)


FAMILY = Family(
    name="ijepa",
    title="I-JEPA",
    module=VisionTransformer,
    config=ViTConfig,
    license="CC-BY-NC-4.0",
    readers=(
        Reader(
            "transformers",
            "ijepa",
            _read,
            "ViT",
            head="classifier",
            verified=("features", "other image sizes", "logits"),
        ),
    ),
)
