"""Reads Swin and Swin V2 as transformers writes them: configuration and tensor names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from finetune.models.families.swin.module import SwinConfig
from finetune.models.families.swin.names import BLOCK, DROPPED, merging_rows
from finetune.models.family import Reading, parse_transformers, square_sizes
from finetune.models.layers.convolution import require_supported
from finetune.weights.names import Drop, Rename, Row, convolution, linear, weight_and_bias


def read_transformers(config: dict[str, Any], names: Collection[str]) -> Reading:
    v2 = config["model_type"] == "swinv2"
    parsed = parse_transformers("Swinv2Config" if v2 else "SwinConfig", config)
    require_supported(vars(parsed), {"use_absolute_embeddings": False})
    image_size, patch_size = square_sizes(parsed)
    stages = len(parsed.depths)
    module_config = SwinConfig(
        image_size=image_size,
        patch_size=patch_size,
        embed_dim=parsed.embed_dim,
        depths=tuple(parsed.depths),
        num_heads=tuple(parsed.num_heads),
        window_sizes=(parsed.window_size,) * stages,
        window_rule="clipped" if v2 else "fixed",
        reference_grid=image_size // patch_size,
        version=2 if v2 else 1,
        pretrained_windows=tuple(parsed.pretrained_window_sizes or ())[:stages] if v2 else (),
        mlp_ratio=parsed.mlp_ratio,
        qkv_bias=parsed.qkv_bias,
        hidden_act=parsed.hidden_act,
        layer_norm_eps=parsed.layer_norm_eps,
        separation=-200.0 if v2 else -100.0,  # transformers adds it twice in V2
        pad_first=True,
        dropout=parsed.hidden_dropout_prob,
        attention_dropout=parsed.attention_probs_dropout_prob,
        drop_path_rate=parsed.drop_path_rate,
    )
    return Reading(module_config, _names(stages))


def _names(stages: int) -> tuple[Row, ...]:
    root = r"(?:swin\.|swinv2\.)?"
    layers = rf"{root}encoder\.layers"
    block = rf"{layers}\.(\d+)\.blocks\.(\d+)"
    attention, bias = rf"{block}\.attention\.self", f"{BLOCK}.attention.position_bias"
    projections = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
    return (
        DROPPED,
        *weight_and_bias(rf"{root}embeddings\.patch_embeddings\.projection", "stem.conv", "kernel", convolution),
        *weight_and_bias(rf"{root}embeddings\.norm", "stem.norm", "scale"),
        # a stage here ends by merging patches; in the module, the next one begins with it
        *(row for i in range(1, stages) for row in merging_rows(rf"{layers}\.{i - 1}", f"stages_{i}")),
        *(
            row
            for theirs, ours in projections
            for row in weight_and_bias(rf"{attention}\.{theirs}", f"{BLOCK}.attention.{ours}", "kernel", linear)
        ),
        *weight_and_bias(rf"{block}\.attention\.output\.dense", f"{BLOCK}.attention.out_proj", "kernel", linear),
        Rename(rf"{attention}\.relative_position_bias_table", f"{BLOCK}.attention.relative_position_embedding"),
        Rename(rf"{attention}\.logit_scale", f"{BLOCK}.attention.logit_scale"),
        *weight_and_bias(rf"{attention}\.continuous_position_bias_mlp\.0", f"{bias}.fc1", "kernel", linear),
        Rename(rf"{attention}\.continuous_position_bias_mlp\.2\.weight", f"{bias}.fc2.kernel", linear),
        *weight_and_bias(rf"{block}\.layernorm_before", f"{BLOCK}.norm1", "scale"),
        *weight_and_bias(rf"{block}\.layernorm_after", f"{BLOCK}.norm2", "scale"),
        *weight_and_bias(rf"{block}\.intermediate\.dense", f"{BLOCK}.mlp.fc1", "kernel", linear),
        *weight_and_bias(rf"{block}\.output\.dense", f"{BLOCK}.mlp.fc2", "kernel", linear),
        *weight_and_bias(rf"{root}layernorm", "norm", "scale"),
        Drop(r"(?:classifier|decoder)\..*"),
    )
