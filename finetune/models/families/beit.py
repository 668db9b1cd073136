"""BEiT (Bao et al. 2022, arXiv:2106.08254) and BEiT v2 (Peng et al. 2022, arXiv:2208.06366)."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from finetune.errors import ModelError
from finetune.models.depth import DepthOrder
from finetune.models.families.vit import timm_image_size
from finetune.models.family import Family, Reader, Reading, parse_transformers, square_sizes, timm_arguments
from finetune.models.layers.base import BackboneOutput, DropPath, rematerialized
from finetune.models.layers.convolution import require_supported
from finetune.models.layers.scan import apply_run, split_runs
from finetune.models.layers.transformer import MLP
from finetune.models.layers.vision_transformer import VisionEmbeddings, ViTConfig
from finetune.models.layers.windows import Resampling, Size, biased_attention, relative_index, resample_table
from finetune.weights.names import Drop, Rename, Row, Split, convolution, flat, linear, unbatched, weight_and_bias


@dataclass(frozen=True, kw_only=True)
class BeitConfig(ViTConfig):
    """Sizes and variants. The pooling is "class" or "mean".

    Attributes:
        layer_bias: every attention layer adds a learned bias of its own to each pair of tokens.
        shared_bias: all attention layers add the same one.
        bias_grid: patches along an edge of the images that the biases were learned for.
        resampling: how the biases are resampled for other images.
    """

    layer_bias: bool
    shared_bias: bool
    bias_grid: int
    resampling: Resampling

    @property
    def bias_shape(self) -> tuple[int, int]:
        """Of a table of biases: one row for each relative position, and 3 for the pairs with the class token."""
        return (2 * self.bias_grid - 1) ** 2 + 3, self.num_attention_heads

    def bias(self, table: jax.Array, grid: Size) -> jax.Array:
        """A table's bias for each pair of tokens: float32 [heads, 1 + patches, 1 + patches] of a grid."""
        patches = resample_table(table[:-3], (self.bias_grid, self.bias_grid), grid, self.resampling)
        count = len(patches)
        index = np.pad(relative_index(grid), ((1, 0), (1, 0)))
        index[0, :] = count  # class token to patch
        index[:, 0] = count + 1  # patch to class token
        index[0, 0] = count + 2
        return jnp.concatenate([patches, table[-3:]])[index].transpose(2, 0, 1)


_INIT = nn.initializers.truncated_normal(0.02)
# The fast variance, E[x^2] - E[x]^2, loses precision where the mean is large, as in a trained residual stream.
_LayerNorm = partial(nn.LayerNorm, use_fast_variance=False)


class BeitAttention(nn.Module):
    """Multi-head attention with relative position bias: [N, tokens, C] to the same shape."""

    config: BeitConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        dense = partial(nn.Dense, config.hidden_size, dtype=self.dtype, kernel_init=_INIT)
        self.q_proj = dense(use_bias=config.qkv_bias)
        self.k_proj = dense(use_bias=False)
        self.v_proj = dense(use_bias=config.qkv_bias)
        self.out_proj = dense()
        self.dropout = nn.Dropout(config.attention_dropout)
        if config.layer_bias:
            self.relative_position_embedding = self.param("relative_position_embedding", _INIT, config.bias_shape)

    def __call__(self, tokens: jax.Array, shared: jax.Array | None, grid: Size, train: bool) -> jax.Array:
        def split_heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:-1], self.config.num_attention_heads, -1)

        bias = shared
        if self.config.layer_bias:
            own = self.config.bias(self.relative_position_embedding, grid)
            bias = own if shared is None else own + shared
        q, k, v = (split_heads(projection(tokens)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        dropout = partial(self.dropout, deterministic=False) if train and self.config.attention_dropout else None
        context = biased_attention(q, k, v, bias, q.shape[-1] ** -0.5, dropout)
        return self.out_proj(context.reshape(tokens.shape))


class BeitBlock(nn.Module):
    """A pre-norm transformer block: [N, tokens, C] to the same shape.

    Attributes:
        drop_path_rate: stochastic depth of this block during training.
    """

    config: BeitConfig
    drop_path_rate: float | jax.Array
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.norm1 = _LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype)
        self.attention = BeitAttention(config, dtype=self.dtype)
        self.norm2 = _LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype)
        self.mlp = MLP(config, dtype=self.dtype)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(self.drop_path_rate)
        if config.layer_scale:
            init = nn.initializers.constant(1e-5)
            self.layer_scale1 = self.param("layer_scale1", init, (config.hidden_size,))
            self.layer_scale2 = self.param("layer_scale2", init, (config.hidden_size,))

    def __call__(self, tokens: jax.Array, shared: jax.Array | None, grid: Size, train: bool) -> jax.Array:
        scales = (self.layer_scale1, self.layer_scale2) if self.config.layer_scale else (None, None)

        def regularize(branch: jax.Array, scale: jax.Array | None) -> jax.Array:
            branch = self.dropout(branch, deterministic=not train)
            branch = branch if scale is None else branch * scale.astype(branch.dtype)
            return self.drop_path(branch, deterministic=not train)

        tokens = tokens + regularize(self.attention(self.norm1(tokens), shared, grid, train), scales[0])
        return tokens + regularize(self.mlp(self.norm2(tokens)), scales[1])


class BeitModule(nn.Module):
    """float32 [N, H, W, 3] -> BackboneOutput of [N, 1 + patches, hidden_size], the class token first, and [N, C].

    H and W are ``image_size`` where the positions are learned, which they are beside the biases or instead of them.
    """

    depth_order: ClassVar[DepthOrder] = DepthOrder(
        stem=r"embeddings/.*|relative_position_embedding", blocks=r"layers_(\d+)/.*", top=r"post_layernorm/.*"
    )

    config: BeitConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    scan_layers: tuple[int, ...] = ()

    def setup(self) -> None:
        config, count = self.config, self.config.num_hidden_layers
        self.embeddings = VisionEmbeddings(config, dtype=self.dtype)
        self.dropout = nn.Dropout(config.dropout)
        if config.shared_bias:
            self.relative_position_embedding = self.param("relative_position_embedding", _INIT, config.bias_shape)
        block = rematerialized(BeitBlock, self.remat, static=(3, 4))
        self.layers = [
            block(config, config.drop_path_rate * i / max(count - 1, 1), dtype=self.dtype) for i in range(count)
        ]
        self.post_layernorm = _LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype)

    def __call__(self, pixel_values: jax.Array, train: bool = False) -> BackboneOutput:
        config = self.config
        height, width = pixel_values.shape[1:3]
        grid = (height // config.patch_size, width // config.patch_size)
        tokens = self.dropout(self.embeddings(pixel_values), deterministic=not train)
        shared = config.bias(self.relative_position_embedding, grid) if config.shared_bias else None
        for run in split_runs(self.layers, self.scan_layers):
            tokens = apply_run(
                run,
                tokens,
                lambda layer, tokens: layer(tokens, shared, grid, train),
                random=train and config.is_random,
            )
        if not config.norm_after_pool:
            tokens = self.post_layernorm(tokens)
        pooled = tokens[:, 1:].mean(axis=1) if config.pooling == "mean" else tokens[:, 0]
        pooled = self.post_layernorm(pooled) if config.norm_after_pool else pooled
        return BackboneOutput(last_hidden_state=tokens, pooler_output=pooled)


def _transformers_names(names: Collection[str]) -> tuple[Row, ...]:
    root = r"(?:beit\.)?"
    theirs, layer, ours = rf"{root}embeddings\.", rf"{root}encoder\.layer\.(\d+)\.", r"layers_\1."
    attention = rf"{layer}attention\.attention\."
    # A model for masked images has a norm in its head, which takes the place of the encoder's where it has none.
    if any(name.endswith("pooler.layernorm.weight") for name in names):
        norm = rf"{root}pooler\.layernorm"
    else:
        norm = r"beit\.layernorm" if "beit.layernorm.weight" in names else r"layernorm"
    return (
        Rename(rf"{theirs}cls_token", "embeddings.class_embedding", flat),
        Rename(rf"{theirs}position_embeddings", "embeddings.position_embedding.embedding", unbatched),
        *weight_and_bias(rf"{theirs}patch_embeddings\.projection", "embeddings.patch_embedding", "kernel", convolution),
        Rename(rf"{root}encoder\.relative_position_bias\.relative_position_bias_table", "relative_position_embedding"),
        Rename(
            rf"{attention}relative_position_bias\.relative_position_bias_table",
            f"{ours}attention.relative_position_embedding",
        ),
        *weight_and_bias(rf"{attention}([qkv])[a-z]+", rf"{ours}attention.\2_proj", "kernel", linear),
        *weight_and_bias(rf"{layer}attention\.output\.dense", f"{ours}attention.out_proj", "kernel", linear),
        Rename(rf"{layer}lambda_([12])", rf"{ours}layer_scale\2"),
        *weight_and_bias(rf"{layer}layernorm_before", f"{ours}norm1", "scale"),
        *weight_and_bias(rf"{layer}layernorm_after", f"{ours}norm2", "scale"),
        *weight_and_bias(rf"{layer}intermediate\.dense", f"{ours}mlp.fc1", "kernel", linear),
        *weight_and_bias(rf"{layer}output\.dense", f"{ours}mlp.fc2", "kernel", linear),
        *weight_and_bias(norm, "post_layernorm", "scale"),
        Drop(rf"{theirs}mask_token|.*\.relative_position_index|(?:lm_head|classifier|layernorm)\..*"),
    )


_BLOCK, _LAYER = r"blocks\.(\d+)\.", r"layers_\1."
TIMM_NAMES: tuple[Row, ...] = (
    Rename(r"cls_token", "embeddings.class_embedding", flat),
    Rename(r"pos_embed", "embeddings.position_embedding.embedding", unbatched),
    *weight_and_bias(r"patch_embed\.proj", "embeddings.patch_embedding", "kernel", convolution),
    Rename(r"rel_pos_bias\.relative_position_bias_table", "relative_position_embedding"),
    Rename(rf"{_BLOCK}attn\.relative_position_bias_table", f"{_LAYER}attention.relative_position_embedding"),
    Split(rf"{_BLOCK}attn\.qkv\.weight", tuple(f"{_LAYER}attention.{x}_proj.kernel" for x in "qkv"), linear),
    Rename(rf"{_BLOCK}attn\.([qv])_bias", rf"{_LAYER}attention.\2_proj.bias"),
    *weight_and_bias(rf"{_BLOCK}attn\.proj", f"{_LAYER}attention.out_proj", "kernel", linear),
    Rename(rf"{_BLOCK}gamma_([12])", rf"{_LAYER}layer_scale\2"),
    *weight_and_bias(rf"{_BLOCK}norm([12])", rf"{_LAYER}norm\2", "scale"),
    *weight_and_bias(rf"{_BLOCK}mlp\.fc([12])", rf"{_LAYER}mlp.fc\2", "kernel", linear),
    *weight_and_bias(r"(?:fc_)?norm", "post_layernorm", "scale"),
    Drop(r".*relative_position_index|head\..*"),
)


def _read_transformers(config: dict[str, Any], names: Collection[str]) -> Reading:
    parsed = parse_transformers("BeitConfig", config)
    image_size, patch_size = square_sizes(parsed)
    module_config = BeitConfig(
        hidden_size=parsed.hidden_size,
        intermediate_size=parsed.intermediate_size,
        num_hidden_layers=parsed.num_hidden_layers,
        num_attention_heads=parsed.num_attention_heads,
        hidden_act=parsed.hidden_act,
        layer_norm_eps=parsed.layer_norm_eps,
        key_bias=False,
        layer_scale=parsed.layer_scale_init_value > 0,
        dropout=parsed.hidden_dropout_prob,
        attention_dropout=parsed.attention_probs_dropout_prob,
        drop_path_rate=parsed.drop_path_rate,
        image_size=image_size,
        patch_size=patch_size,
        learned_positions=parsed.use_absolute_position_embeddings,
        pooling="mean" if parsed.use_mean_pooling else "class",
        norm_after_pool=any(name.endswith("pooler.layernorm.weight") for name in names),
        layer_bias=parsed.use_relative_position_bias,
        shared_bias=parsed.use_shared_relative_position_bias,
        bias_grid=image_size // patch_size,
        resampling="linear",
    )
    return Reading(module_config, _transformers_names(names))


_TIMM = r"(?:beit|beitv2)_(?P<size>base|large)_patch(?P<patch>\d+)_\d+"
_TIMM_SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16)}  # width, blocks, heads
_TIMM_POOLS = ("avg", "token")
_TIMM_SUPPORTED = {"swiglu_mlp": False, "scale_mlp": False}
# What these set is known from the names of the tensors, or has no effect on the features.
_TIMM_KNOWN = {"img_size", "global_pool", "init_values", "use_fc_norm", "qkv_bias", "use_abs_pos_emb"}
_TIMM_KNOWN |= {"use_rel_pos_bias", "use_shared_rel_pos_bias", "head_init_scale"}
_TIMM_KNOWN |= {"drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate"}


def _read_timm(config: dict[str, Any], names: Collection[str]) -> Reading:
    match = re.fullmatch(_TIMM, config["architecture"])
    assert match is not None  # the reader's ``model_types``
    width, depth, heads = _TIMM_SIZES[match["size"]]
    defaults = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": 4.0, "drop_path_rate": 0.0}
    defaults |= {"patch_size": int(match["patch"]), **_TIMM_SUPPORTED}
    arguments = timm_arguments(config, defaults, _TIMM_KNOWN)
    require_supported(arguments, _TIMM_SUPPORTED)
    pool = arguments.get("global_pool") or config.get("global_pool") or "avg"
    if pool not in _TIMM_POOLS:
        raise ModelError(f"global_pool: {pool!r} is not supported; supported: {', '.join(_TIMM_POOLS)}")
    image_size = timm_image_size(config, arguments)
    module_config = BeitConfig(
        hidden_size=arguments["embed_dim"],
        intermediate_size=int(arguments["embed_dim"] * arguments["mlp_ratio"]),
        num_hidden_layers=arguments["depth"],
        num_attention_heads=arguments["num_heads"],
        qkv_bias="blocks.0.attn.q_bias" in names,
        key_bias=False,
        layer_scale="blocks.0.gamma_1" in names,
        drop_path_rate=arguments["drop_path_rate"],
        image_size=image_size,
        patch_size=arguments["patch_size"],
        learned_positions="pos_embed" in names,
        pooling="mean" if pool == "avg" else "class",
        norm_after_pool="fc_norm.weight" in names,
        layer_bias="blocks.0.attn.relative_position_bias_table" in names,
        shared_bias="rel_pos_bias.relative_position_bias_table" in names,
        bias_grid=image_size // arguments["patch_size"],
        resampling="geometric",
    )
    return Reading(module_config, TIMM_NAMES)


FAMILY = Family(
    name="beit",
    title="BEiT",
    module=BeitModule,
    config=BeitConfig,
    license="Apache-2.0",
    readers=(
        Reader(
            "transformers",
            "beit",
            _read_transformers,
            "Beit",
            head="classifier",
            verified=("features", "other image sizes", "logits", "a training step"),
        ),
        Reader(
            "timm",
            _TIMM,
            _read_timm,
            antialias=True,
            head="head",
            label="beit_*, beitv2_*",
            verified=("features", "other image sizes", "logits"),
        ),
    ),
)
