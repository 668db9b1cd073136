"""The encoder of ViT-MAE (He et al. 2022, arXiv:2111.06377), which sees every patch, in order.

Its positions are fixed sines and cosines in pretraining. Checkpoints hold them as a table, and here they are parameters
like all others, which the selector ``embeddings`` can freeze.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from finetune.models.families.vit import block_rows, embedding_rows, encoder_fields
from finetune.models.family import Family, Reader, Reading, parse_transformers
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.weights.names import Drop, Row

_PREFIX = r"(?:vit\.)?"  # where the model was saved with its decoder
NAMES: tuple[Row, ...] = (
    *embedding_rows(_PREFIX),
    *block_rows(_PREFIX, ("layernorm_before", "layernorm_after"), (r"intermediate\.dense", r"output\.dense")),
    Drop(r"decoder\..*"),
)


def _read(config: dict[str, Any], names: Collection[str]) -> Reading:
    parsed = parse_transformers("ViTMAEConfig", config)
    # transformers has no pooled output; the class token is what the paper's linear probes read
    module_config = ViTConfig(**encoder_fields(parsed), intermediate_size=parsed.intermediate_size, pooling="class")
    return Reading(module_config, NAMES)


FAMILY = Family(
    name="vit_mae",
    title="ViT-MAE",
    module=VisionTransformer,
    config=ViTConfig,
    license="Apache-2.0",
    readers=(Reader("transformers", "vit_mae", _read, "ViT", verified=("features", "other image sizes")),),
)
