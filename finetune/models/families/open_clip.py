"""Checkpoints of open_clip (Ilharco et al. 2021, doi:10.5281/zenodo.5143773): CLIP's text tower beside its own ViT, or
beside a vision tower that it takes from timm, which is read by the family that knows it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from finetune.errors import ModelError
from finetune.models.families import clip
from finetune.models.families.clip import CLIPConfig, CLIPModule
from finetune.models.family import Family, Reader, Reading, square_edge
from finetune.models.layers.text import TextConfig
from finetune.models.layers.vision_transformer import VisionTransformer, ViTConfig
from finetune.weights.names import Drop, Rename, Row, Split, convolution, linear, nested, scalar, weight_and_bias


def block_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of a tower's blocks, whose names begin with ``theirs`` in open_clip and with ``ours`` here."""
    block, layer = rf"{theirs}\.resblocks\.(\d+)\.", rf"{ours}.encoder.layers.\1."
    packed = tuple(rf"{layer}self_attn.{letter}_proj." for letter in "qkv")
    return (
        *weight_and_bias(rf"{block}ln_([12])", rf"{layer}layer_norm\2", "scale"),
        Rename(rf"{block}ls_([12])\.gamma", rf"{layer}layer_scale\2"),
        Split(rf"{block}attn\.in_proj_weight", tuple(f"{path}kernel" for path in packed), linear),
        Split(rf"{block}attn\.in_proj_bias", tuple(f"{path}bias" for path in packed)),
        *weight_and_bias(rf"{block}attn\.out_proj", rf"{layer}self_attn.out_proj", "kernel", linear),
        *weight_and_bias(rf"{block}mlp\.c_fc", rf"{layer}mlp.fc1", "kernel", linear),
        *weight_and_bias(rf"{block}mlp\.c_proj", rf"{layer}mlp.fc2", "kernel", linear),
    )


VISION_NAMES: tuple[Row, ...] = (
    Rename(r"visual\.class_embedding", r"vision_model.embeddings.class_embedding"),
    Rename(r"visual\.conv1\.weight", r"vision_model.embeddings.patch_embedding.kernel", convolution),
    Rename(r"visual\.positional_embedding", r"vision_model.embeddings.position_embedding.embedding"),
    *weight_and_bias(r"visual\.ln_pre", r"vision_model.pre_layrnorm", "scale"),
    *weight_and_bias(r"visual\.ln_post", r"vision_model.post_layernorm", "scale"),
    Rename(r"visual\.proj", r"visual_projection.kernel"),
    *block_rows(r"visual\.transformer", "vision_model"),
)
# Everything but the vision tower. `text.` is in the names where the configuration says `custom_text`.
TEXT_NAMES: tuple[Row, ...] = (
    Drop(r"(?:text\.)?attn_mask"),
    Rename(r"(logit_scale|logit_bias)", r"\1", scalar),
    Rename(r"(?:text\.)?token_embedding\.weight", r"text_model.embeddings.token_embedding.embedding"),
    Rename(r"(?:text\.)?positional_embedding", r"text_model.embeddings.position_embedding.embedding"),
    *weight_and_bias(r"(?:text\.)?ln_final", r"text_model.final_layer_norm", "scale"),
    Rename(r"(?:text\.)?text_projection", r"text_projection.kernel"),
    *weight_and_bias(r"(?:text\.)?text_projection", r"text_projection", "kernel", linear),
    *block_rows(r"(?:text\.)?transformer", "text_model"),
)

# The defaults of open_clip's towers. Any other option would change what they compute, and is refused.
_BLOCKS: dict[str, Any] = {"mlp_ratio": 4.0, "ls_init_value": None, "norm_kwargs": None, "act_kwargs": None}
_VISION = {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 16, **_BLOCKS}
_VISION |= {"no_ln_pre": False, "pool_type": "tok", "final_ln_after_pool": False}
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, **_BLOCKS}
_TEXT |= {"pool_type": "argmax", "eos_id": 2, "no_causal_mask": False, "proj_bias": False, "proj_type": "linear"}
_TEXT |= {"tokenizer_kwargs": None}
_TIMM = {"timm_model_name": "", "timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": False, "image_size": 224}

_ALWAYS_DEFAULT = {"pos_embed_type": "learnable", "block_type": "default"}
# Options without an effect on evaluation, or of another kind of tower than the one that is built.
_TRAINING = {"patch_dropout", "output_tokens", "timm_model_pretrained", "timm_drop", "timm_drop_path"}
_OTHER_VISION = {"attn_pooler_queries", "attn_pooler_heads", *(_TIMM.keys() - _VISION.keys() - {"timm_model_name"})}
_OTHER_TEXT = {"pad_id", "hf_tokenizer_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"}
_OWN_VIT = {*(_VISION.keys() - _TIMM.keys()), "attn_pooler_queries", "attn_pooler_heads"}


def options(
    tower: Mapping[str, Any], defaults: Mapping[str, Any], without_effect: Collection[str], name: str
) -> dict[str, Any]:
    """A tower's options with their defaults.

    Args:
        without_effect: further options, whose values do not matter.
        name: of the tower, for messages.

    Raises:
        ModelError: another option has a value; lists all such.
    """
    known = {*defaults, *without_effect, *_TRAINING}
    unsupported = sorted(
        key for key, value in tower.items() if key not in known and value and value != _ALWAYS_DEFAULT.get(key)
    )
    if unsupported:
        raise ModelError(f"model_cfg.{name}: not supported: {', '.join(unsupported)}; supported: {', '.join(defaults)}")
    return {key: tower.get(key, default) for key, default in defaults.items()}


def square(size: Any, option: str) -> int:
    """The edge in pixels, of an int or [height, width].

    Raises:
        ModelError: height and width differ.
    """
    edge = square_edge(size)
    if edge is None:
        raise ModelError(f"model_cfg.vision_cfg: {option}: only squares are supported; received {size}")
    return edge


def both_towers(
    model: dict[str, Any],
    names: Collection[str],
    vision: Any,
    rows: Sequence[Row],
    *,
    projects: bool,
    tower: Family | None = None,
) -> Reading:
    """The reading of a whole model.

    Args:
        model: ``model_cfg``.
        names: of all tensors.
        vision: configuration of the vision tower.
        rows: of the vision tower and its projection.
        projects: a linear layer follows the vision tower's pooled output.
        tower: family of the vision tower, where it is not the reader's.

    Raises:
        ModelError: the text tower is not supported.
    """
    if model.get("multimodal_cfg"):
        raise ModelError("model_cfg: not supported: multimodal_cfg (CoCa)")
    text = options(model["text_cfg"], _TEXT, _OTHER_TEXT, "text_cfg")
    if text["pool_type"] not in ("argmax", "eos", "first", "last"):
        raise ModelError(f"model_cfg.text_cfg: pool_type: {text['pool_type']!r} is not supported")
    if text["proj_type"] not in ("linear", "none"):
        raise ModelError(f"model_cfg.text_cfg: proj_type: {text['proj_type']!r} is not supported")
    bias = model.get("init_logit_bias")
    return Reading(
        CLIPConfig(
            vision_config=vision,
            text_config=_text_config(model, text),
            projection_dim=model["embed_dim"],
            visual_projection=projects,
            text_projection=text["proj_type"] == "linear",
            text_projection_bias=text["proj_bias"],
            logit_bias_init_value=float(bias or 0.0) if "logit_bias" in names else None,
        ),
        (*rows, *TEXT_NAMES),
        tower,
    )


def _text_config(model: dict[str, Any], text: dict[str, Any]) -> TextConfig:
    tokenizer = dict(text["tokenizer_kwargs"] or {})
    clean, drop_separator = tokenizer.pop("clean", "whitespace"), tokenizer.pop("strip_sep_token", False)
    if tokenizer or clean not in ("whitespace", "canonicalize"):
        raise ModelError(f"model_cfg.text_cfg: tokenizer_kwargs: {text['tokenizer_kwargs']} is not supported")
    return TextConfig(
        **_encoder(model, text, text["heads"], "text_cfg"),
        vocab_size=text["vocab_size"],
        max_position_embeddings=text["context_length"],
        eos_token_id=text["eos_id"] if text["pool_type"] == "eos" else None,
        causal=not text["no_causal_mask"],
        pooling=text["pool_type"] if text["pool_type"] in ("first", "last") else "end",
        canonical=clean == "canonicalize",
        drop_separator=drop_separator,
    )


def _encoder(model: dict[str, Any], tower: dict[str, Any], heads: int, name: str) -> dict[str, Any]:
    """The fields that both towers' configurations have."""
    norm, act = dict(tower["norm_kwargs"] or {}), dict(tower["act_kwargs"] or {})
    epsilon, approximate = norm.pop("eps", 1e-5), act.pop("approximate", "none")
    quick = bool(model.get("quick_gelu"))
    if norm or act or approximate not in ("none", "tanh") or (quick and tower["act_kwargs"]):
        raise ModelError(
            f"model_cfg.{name}: not supported: norm_kwargs {tower['norm_kwargs']}, act_kwargs {tower['act_kwargs']}"
            f"{' with quick_gelu' if quick else ''}; supported: eps, and approximate without quick_gelu"
        )
    return {
        "hidden_size": tower["width"],
        "intermediate_size": int(tower["width"] * tower["mlp_ratio"]),
        "num_hidden_layers": tower["layers"],
        "num_attention_heads": heads,
        "hidden_act": "quick_gelu" if quick else {"none": "gelu", "tanh": "gelu_pytorch_tanh"}[approximate],
        "layer_norm_eps": epsilon,
        "layer_scale": tower["ls_init_value"] is not None,
    }


def _read_vit(config: dict[str, Any], names: Collection[str]) -> Reading:
    model = config["model_cfg"]
    vision = options(model["vision_cfg"], _VISION, _OTHER_VISION, "vision_cfg")
    if vision["pool_type"] not in ("tok", "avg"):
        raise ModelError(f"model_cfg.vision_cfg: pool_type: {vision['pool_type']!r} is not supported")
    tower = ViTConfig(
        **_encoder(model, vision, vision["width"] // vision["head_width"], "vision_cfg"),
        image_size=square(vision["image_size"], "image_size"),
        patch_size=square(vision["patch_size"], "patch_size"),
        patch_bias=False,
        pre_norm=not vision["no_ln_pre"],
        pooling="class" if vision["pool_type"] == "tok" else "mean",
        # of one token, the norm before the pooling is the norm after it
        norm_after_pool=vision["final_ln_after_pool"] or vision["pool_type"] == "tok",
    )
    return both_towers(model, names, tower, VISION_NAMES, projects=True, tower=clip.FAMILY)


def _read_timm(config: dict[str, Any], names: Collection[str]) -> Reading:
    from finetune.models.registry import FAMILIES  # not at the top: the registry lists this family too

    model = config["model_cfg"]
    vision = options(model["vision_cfg"], _TIMM, _OWN_VIT, "vision_cfg")
    architecture, projection = vision["timm_model_name"].split(".")[0], vision["timm_proj"]
    if projection not in ("linear", "none") or vision["timm_proj_bias"]:
        raise ModelError(
            "model_cfg.vision_cfg: only timm_proj 'linear' without a bias and 'none' are supported; received "
            f"{projection!r}{' with a bias' if vision['timm_proj_bias'] else ''}"
        )
    family = next((family for family in FAMILIES if family.reader("timm", architecture)), None)
    reader = family.reader("timm", architecture) if family else None
    if family is None or reader is None:
        raise ModelError(
            f"model_cfg.vision_cfg: timm_model_name: {architecture!r} is not supported; `finetune models` lists what is"
        )
    trunk = {name.removeprefix("visual.trunk.") for name in names if name.startswith("visual.trunk.")}
    size = square(vision["image_size"], "image_size")
    pool = vision["timm_pool"]
    reading = reader.read(
        {
            "architecture": architecture,
            "model_args": {"global_pool": pool} if pool else {},
            "pretrained_cfg": {"input_size": [3, size, size]},
        },
        trunk,
    )
    rows = nested(reading.names, r"visual\.trunk\.", "vision_model")
    head = Rename(r"visual\.head\.proj\.weight", "visual_projection.kernel", linear)
    return both_towers(model, names, reading.config, (*rows, head), projects=projection == "linear", tower=family)


FAMILY = Family(
    name="open_clip",
    title="OpenCLIP",
    module=VisionTransformer,
    config=ViTConfig,
    license="MIT",
    readers=(
        Reader(
            "open_clip",
            "open_clip",
            _read_vit,
            module=CLIPModule,
            antialias=True,
            label="open_clip's own ViT and text towers",
            verified=("features", "other image sizes", "text features"),
        ),
        Reader(
            "open_clip",
            "open_clip_timm",
            _read_timm,
            module=CLIPModule,
            antialias=True,
            label="a vision tower of timm (timm_model_name) and open_clip's text tower",
            verified=("features", "text features"),
        ),
    ),
)
