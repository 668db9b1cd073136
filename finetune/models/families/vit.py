"""ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) and DeiT (Touvron et al. 2021, arXiv:2012.12877).

Also reads timm's ``VisionTransformer``, whose layout CLIP, SigLIP and DINOv2 have too.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from finetune.errors import ModelError
from finetune.models.family import Family, Reader, Reading, parse_transformers, square_sizes, timm_arguments
from finetune.models.layers.vision_transformer import Pooling, VisionTransformer, ViTConfig
from finetune.weights.names import Drop, Rename, Row, Split, convolution, flat, linear, unbatched, weight_and_bias


def embedding_rows(prefix: str) -> tuple[Row, ...]:
    """The rows around the encoder, which are the same in transformers' ViT, DeiT and DINOv2."""
    theirs = rf"{prefix}embeddings\."
    return (
        Drop(rf"{theirs}mask_token"),  # replaces masked patches in pretraining
        Rename(rf"{theirs}cls_token", r"embeddings.class_embedding", flat),
        Rename(rf"{theirs}distillation_token", r"embeddings.distillation_embedding", flat),
        Rename(rf"{theirs}register_tokens", r"embeddings.register_embedding", unbatched),
        Rename(rf"{theirs}position_embeddings", r"embeddings.position_embedding.embedding", unbatched),
        *weight_and_bias(
            rf"{theirs}patch_embeddings\.projection", r"embeddings.patch_embedding", "kernel", convolution
        ),
        *weight_and_bias(rf"{prefix}layernorm", r"post_layernorm", "scale"),
        Drop(r"(?:classifier|cls_classifier|distillation_classifier)\..*"),
    )


def block_rows(prefix: str, norms: tuple[str, str], mlp: tuple[str, str]) -> tuple[Row, ...]:
    """The rows of the blocks in transformers; ``norms`` and ``mlp`` are the family's names of these layers."""
    block, layer = rf"{prefix}encoder\.layer\.(\d+)\.", r"encoder.layers.\1."
    rows: list[Row] = [
        *weight_and_bias(
            rf"{block}attention\.attention\.([qkv])[a-z]+", rf"{layer}self_attn.\2_proj", "kernel", linear
        ),
        *weight_and_bias(rf"{block}attention\.output\.dense", rf"{layer}self_attn.out_proj", "kernel", linear),
    ]
    for number, (norm, dense) in enumerate(zip(norms, mlp, strict=True), start=1):
        rows += [
            *weight_and_bias(rf"{block}{norm}", rf"{layer}layer_norm{number}", "scale"),
            *weight_and_bias(rf"{block}{dense}", rf"{layer}mlp.fc{number}", "kernel", linear),
        ]
    return tuple(rows)


_PREFIX = r"(?:vit\.|deit\.)?"  # where the model was saved with a head
NAMES: tuple[Row, ...] = (
    *embedding_rows(_PREFIX),
    *block_rows(_PREFIX, ("layernorm_before", "layernorm_after"), (r"intermediate\.dense", r"output\.dense")),
    *weight_and_bias(rf"{_PREFIX}pooler\.dense", r"pooler", "kernel", linear),
)
# transformers' classifiers read the class token, and leave out a pooler that their files have.
_CLASSIFIERS = {"classifier.weight", "cls_classifier.weight"}
_CLASSIFIER_NAMES: tuple[Row, ...] = (Drop(rf"{_PREFIX}pooler\..*"), *NAMES)

_BLOCK, _LAYER = r"blocks\.(\d+)\.", r"encoder.layers.\1."
_POOL, _POOLER = r"attn_pool\.", r"pooler."
TIMM_NAMES: tuple[Row, ...] = (
    Rename(r"cls_token", r"embeddings.class_embedding", flat),
    Rename(r"dist_token", r"embeddings.distillation_embedding", flat),
    Rename(r"reg_token", r"embeddings.register_embedding", unbatched),
    Rename(r"pos_embed", r"embeddings.position_embedding.embedding", unbatched),
    *weight_and_bias(r"patch_embed\.proj", r"embeddings.patch_embedding", "kernel", convolution),
    *weight_and_bias(r"norm_pre", r"pre_layrnorm", "scale"),
    *weight_and_bias(r"(?:fc_)?norm", r"post_layernorm", "scale"),
    Split(rf"{_BLOCK}attn\.qkv\.weight", tuple(f"{_LAYER}self_attn.{x}_proj.kernel" for x in "qkv"), linear),
    Split(rf"{_BLOCK}attn\.qkv\.bias", tuple(f"{_LAYER}self_attn.{x}_proj.bias" for x in "qkv")),
    *weight_and_bias(rf"{_BLOCK}attn\.proj", rf"{_LAYER}self_attn.out_proj", "kernel", linear),
    *weight_and_bias(rf"{_BLOCK}norm([12])", rf"{_LAYER}layer_norm\2", "scale"),
    Rename(rf"{_BLOCK}ls([12])\.gamma", rf"{_LAYER}layer_scale\2"),
    *weight_and_bias(rf"{_BLOCK}mlp\.fc([12])", rf"{_LAYER}mlp.fc\2", "kernel", linear),
    Rename(rf"{_POOL}latent", rf"{_POOLER}probe", flat),
    *weight_and_bias(rf"{_POOL}q", rf"{_POOLER}attention.q_proj", "kernel", linear),
    Split(rf"{_POOL}kv\.weight", tuple(f"{_POOLER}attention.{x}_proj.kernel" for x in "kv"), linear),
    Split(rf"{_POOL}kv\.bias", tuple(f"{_POOLER}attention.{x}_proj.bias" for x in "kv")),
    *weight_and_bias(rf"{_POOL}proj", rf"{_POOLER}attention.out_proj", "kernel", linear),
    *weight_and_bias(rf"{_POOL}norm", rf"{_POOLER}layernorm", "scale"),
    *weight_and_bias(rf"{_POOL}mlp\.fc([12])", rf"{_POOLER}mlp.fc\1", "kernel", linear),
    Drop(r"head(?:_dist)?\..*"),
)


def encoder_fields(config: Any) -> dict[str, Any]:
    """The fields of a ViTConfig that transformers' ViT, DeiT and DINOv2 configurations share."""
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "qkv_bias")
    renamed = {"dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"}
    fields = {key: getattr(config, key) for key in same} | {key: getattr(config, old) for key, old in renamed.items()}
    image_size, patch_size = square_sizes(config)
    return {**fields, "image_size": image_size, "patch_size": patch_size}


def _read_vit(config: dict[str, Any], names: Collection[str]) -> Reading:
    return _read("ViTConfig", config, names, distilled=False)


def _read_deit(config: dict[str, Any], names: Collection[str]) -> Reading:
    return _read("DeiTConfig", config, names, distilled=True)


def _read(class_name: str, config: dict[str, Any], names: Collection[str], *, distilled: bool) -> Reading:
    parsed = parse_transformers(class_name, config)
    if getattr(parsed, "pooler_act", "tanh") != "tanh":
        raise ModelError(f"pooler_act: only tanh is supported; received {parsed.pooler_act!r}")
    classifies = not _CLASSIFIERS.isdisjoint(names)
    pools = not classifies and any(name.endswith("pooler.dense.weight") for name in names)
    return Reading(
        ViTConfig(
            **encoder_fields(parsed),
            intermediate_size=parsed.intermediate_size,
            distillation_token=distilled,
            pooling="tanh" if pools else "class",
        ),
        _CLASSIFIER_NAMES if classifies else NAMES,
    )


# timm's sizes: width, blocks, heads, ratio of the MLP's width to it.
_SIZES = {
    "wee": (256, 14, 4, 5.0),
    "little": (320, 14, 5, 5.6),
    "tiny": (192, 12, 3, 4.0),
    "xsmall": (256, 10, 4, 4.0),
    "small": (384, 12, 6, 4.0),
    "medium": (512, 12, 8, 4.0),
    "mediumd": (512, 20, 8, 4.0),
    "betwixt": (640, 12, 10, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
    "gigantic": (1664, 48, 16, 64 / 13),
    "so400m": (1152, 27, 16, 3.7362),
    "giantopt": (1536, 40, 16, 4.0),
}
_POOLS: dict[str, Pooling] = {"token": "class", "avg": "mean", "map": "attention"}
_ARGUMENTS = {"img_size", "fc_norm", "act_layer", "no_embed_class", "global_pool", "dynamic_img_size", "init_values"}
_ARGUMENTS |= {"class_token", "pre_norm", "qkv_bias", "drop_rate", "drop_path_rate", "attn_drop_rate", "reg_tokens"}
_ARCHITECTURE = re.compile(
    r"(?P<model>vit|deit3?)_(?P<size>[a-z0-9]+?)(?P<distilled>_distilled)?_patch(?P<patch>\d+)"
    r"(?:_reg(?P<registers>\d))?(?:_(?P<pretraining>clip_quickgelu|clip|siglip_gap|siglip|dinov2|tipsv2|gap))?"
    r"(?:_(?P<image>\d+))?"
)


def read_timm(config: dict[str, Any], names: Collection[str]) -> Reading:
    """Reads timm's ``VisionTransformer``; what its architectures fix in code is inferred from names and tensors."""
    match = _ARCHITECTURE.fullmatch(config["architecture"])
    if match is None or match["size"] not in _SIZES:
        raise ModelError(
            f"architecture {config['architecture']!r}: its size is not supported; supported: {', '.join(_SIZES)}"
        )
    gated = match["size"] == "giant" and match["pretraining"] in ("dinov2", "tipsv2")
    width, depth, heads, ratio = (1536, 40, 24, 2.66667 * 2) if gated else _SIZES[match["size"]]
    if config["architecture"] == "vit_base_patch16_gap_224":  # an exception to the sizes above
        heads = 16
    defaults = {
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": ratio,
        "patch_size": int(match["patch"]),
    }
    arguments = timm_arguments(config, defaults, _ARGUMENTS)
    pretraining, width = match["pretraining"] or "", arguments["embed_dim"]
    prefix_positions = not arguments.get("no_embed_class", match["registers"] or match["model"] == "deit3")
    pooling = timm_pooling(config, arguments, names, _default_pool(config["architecture"], names))
    return Reading(
        ViTConfig(
            hidden_size=width,
            intermediate_size=int(width * arguments["mlp_ratio"]) // (2 if gated else 1),
            num_hidden_layers=arguments["depth"],
            num_attention_heads=arguments["num_heads"],
            hidden_act=_timm_activation(arguments, match),
            layer_norm_eps=1e-5 if pretraining.startswith("clip") else 1e-6,
            qkv_bias="blocks.0.attn.qkv.bias" in names,
            gated_mlp=gated,
            layer_scale="blocks.0.ls1.gamma" in names,
            image_size=timm_image_size(config, arguments),
            patch_size=arguments["patch_size"],
            patch_bias="patch_embed.proj.bias" in names,
            class_token="cls_token" in names,
            distillation_token=match["distilled"] is not None,
            register_tokens=int(arguments.get("reg_tokens") or match["registers"] or 0),
            prefix_positions=prefix_positions,
            register_positions=prefix_positions,
            pre_norm="norm_pre.weight" in names,
            pooling="class_distilled" if match["distilled"] else pooling,
            pool_prefix=False,
            norm_after_pool="fc_norm.weight" in names,
        ),
        TIMM_NAMES,
    )


def _timm_activation(arguments: dict[str, Any], match: re.Match[str]) -> str:
    """The activation as ``hidden_act``; timm's later sizes of SigLIP use the tanh approximation of GELU."""
    named, pretraining, size = arguments.get("act_layer"), match["pretraining"] or "", match["size"]
    if named is not None:
        return {"gelu_tanh": "gelu_pytorch_tanh"}.get(named, named)
    if pretraining == "clip_quickgelu":
        return "quick_gelu"
    with_tanh = {("base", "32"), ("large", "512"), ("so400m", "16"), ("giantopt", "16")}
    tanh = pretraining.startswith("siglip") and bool({(size, match["patch"]), (size, match["image"])} & with_tanh)
    return "gelu_pytorch_tanh" if tanh else "gelu"


def _default_pool(architecture: str, names: Collection[str]) -> str:
    """The pooling that timm's function of an architecture sets, where the files say none."""
    if "attn_pool.latent" in names:
        return "map"
    return "token" if "cls_token" in names and "_gap_" not in architecture else "avg"


def timm_pooling(config: dict[str, Any], arguments: dict[str, Any], names: Collection[str], default: str) -> Pooling:
    """The pooling of a timm model; ``default`` is that of its architecture.

    Raises:
        ModelError: it is not supported, or reads a token that the model does not have.
    """
    pool = arguments.get("global_pool") or config.get("global_pool") or default
    if pool not in _POOLS:
        raise ModelError(f"global_pool: {pool!r} is not supported; supported: {', '.join(_POOLS)}")
    if pool == "token" and "cls_token" not in names:
        raise ModelError("global_pool: 'token' needs a class token, and the weights have no cls_token; use 'avg'")
    return _POOLS[pool]


def timm_image_size(config: dict[str, Any], arguments: dict[str, Any]) -> int:
    """The edge in pixels of a timm model's images."""
    size = arguments.get("img_size") or config.get("pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ModelError(f"img_size: only square images are supported; received {height}x{width}")
    return int(height)


FAMILY = Family(
    name="vit",
    title="ViT, DeiT",
    module=VisionTransformer,
    config=ViTConfig,
    license="Apache-2.0",
    readers=(
        Reader(
            "transformers",
            "vit",
            _read_vit,
            "ViT",
            head="classifier",
            verified=("features", "other image sizes", "logits"),
        ),
        Reader("transformers", "deit", _read_deit, "DeiT", verified=("features", "other image sizes")),
        Reader(
            "timm",
            r"vit_[a-z]+_patch\d+(_reg\d)?(_gap)?_\d+|deit3?_[a-z]+(_distilled)?_patch\d+_\d+",
            read_timm,
            antialias=True,
            head="head",
            label="vit_*_patch*, vit_*_reg*_gap_*, deit_*, deit_*_distilled_*, deit3_*",
            verified=("features", "other image sizes", "logits"),
        ),
    ),
)
