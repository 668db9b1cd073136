"""DINOv2 (Oquab et al. 2024, arXiv:2304.07193), with registers (Darcet et al. 2024, arXiv:2309.16588) and without."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from finetune.models.families.vit import block_rows, embedding_rows, encoder_fields, read_timm
from finetune.models.family import Family, Reader, Reading, parse_transformers
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.weights.names import Rename, Row

_PREFIX = r"(?:dinov2\.|dinov2_with_registers\.)?"
NAMES: tuple[Row, ...] = (
    *embedding_rows(_PREFIX),
    *block_rows(_PREFIX, ("norm1", "norm2"), (r"mlp\.(?:fc1|weights_in)", r"mlp\.(?:fc2|weights_out)")),
    Rename(rf"{_PREFIX}encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"encoder.layers.\1.layer_scale\2"),
)


def _read_plain(config: dict[str, Any], names: Collection[str]) -> Reading:
    return _read("Dinov2Config", config)


def _read_registers(config: dict[str, Any], names: Collection[str]) -> Reading:
    return _read("Dinov2WithRegistersConfig", config)


def _read(class_name: str, config: dict[str, Any]) -> Reading:
    parsed = parse_transformers(class_name, config)
    inner = int(parsed.hidden_size * parsed.mlp_ratio)
    if parsed.use_swiglu_ffn:  # two thirds, so that three kernels have the size of two; a multiple of 8
        inner = (int(inner * 2 / 3) + 7) // 8 * 8
    return Reading(
        ViTConfig(
            **encoder_fields(parsed),
            intermediate_size=inner,
            gated_mlp=parsed.use_swiglu_ffn,
            layer_scale=True,
            register_tokens=getattr(parsed, "num_register_tokens", 0),
        ),
        NAMES,
    )


FAMILY = Family(
    name="dinov2",
    title="DINOv2",
    module=VisionTransformer,
    config=ViTConfig,
    license="Apache-2.0",
    readers=(
        Reader("transformers", "dinov2", _read_plain, "Bit", any_size=True, verified=("features", "other image sizes")),
        Reader(
            "transformers",
            "dinov2_with_registers",
            _read_registers,
            "Bit",
            antialias=True,
            any_size=True,
            verified=("features", "other image sizes"),
        ),
        Reader(
            "timm",
            r"vit_[a-z]+_patch14(_reg4)?_dinov2",
            read_timm,
            antialias=True,
            label="vit_*_dinov2, vit_*_reg4_dinov2",
            verified=("features",),
        ),
    ),
)
