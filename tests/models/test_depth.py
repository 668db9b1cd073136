import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from finetune.errors import ModelError
from finetune.models.depth import DepthOrder, depth_order_of
from finetune.models.families.convnext import ConvNeXtConfig
from finetune.models.families.mobilenet_v2 import MobileNetV2Config
from finetune.models.families.resnet import ResNetConfig
from finetune.models.layers.vision_transformer import ViTConfig
from finetune.models.registry import FAMILIES, depth_order_of_tree

SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
BY_NAME = {family.name: family for family in FAMILIES}
# A configuration, or several, with all parts that a family's backbones may have.
CONFIGS = {
    "clip": [ViTConfig(**SIZES, num_hidden_layers=3, pre_norm=True, patch_bias=False)],
    "siglip": [ViTConfig(**SIZES, num_hidden_layers=2, class_token=False, pooling="attention")],
    "vit": [
        ViTConfig(**SIZES, num_hidden_layers=12, pooling="tanh"),
        ViTConfig(**SIZES, num_hidden_layers=1, distillation_token=True, pooling="class_distilled"),
    ],
    "dinov2": [ViTConfig(**SIZES, num_hidden_layers=2, layer_scale=True, gated_mlp=True, register_tokens=4)],
    "resnet": [
        ResNetConfig(depths=(1, 12, 2), hidden_sizes=(8, 8, 16), inner_sizes=(4, 4, 4)),
        ResNetConfig(depths=(2,), hidden_sizes=(8,), inner_sizes=(4,), stem_sizes=(4, 4, 8), bottleneck=False),
    ],
    "convnext": [
        ConvNeXtConfig(depths=(1, 2, 11), hidden_sizes=(4, 8, 8), layer_scale_init_value=1e-6),
        ConvNeXtConfig(depths=(2, 1), hidden_sizes=(4, 8), response_norm=True),
    ],
    "mobilenet_v2": [
        MobileNetV2Config(
            stem_size=4, hidden_sizes=(4,) * 12, inner_sizes=(4, *(8,) * 11), strides=(1,) * 12, num_features=8
        ),
    ],
}


def depths_of(name, which=0):
    """{path: depth} of one of a family's configurations."""
    module = BY_NAME[name].module(CONFIGS[name][which])
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    return module.depth_order.depths(flatten_dict(variables["params"], sep="/").keys())


def of_part(depth, part):
    """The one depth that all leaves below a module have."""
    values = {value for path, value in depth.items() if path.startswith(f"{part}/")}
    assert len(values) == 1, (part, values)
    return values.pop()


@pytest.mark.parametrize(
    ("name", "which"), [(name, i) for name, configs in CONFIGS.items() for i in range(len(configs))]
)
def test_every_leaf_has_a_depth_and_no_depth_is_skipped(name, which):
    depth, config = depths_of(name, which), CONFIGS[name][which]
    blocks = getattr(config, "num_hidden_layers", None) or sum(getattr(config, "depths", ())) or len(config.strides)
    assert set(depth.values()) == set(range(blocks + (1 if name == "resnet" else 2)))


@pytest.mark.parametrize(
    ("name", "block"),
    [("vit", "encoder/layers/{}"), ("resnet", "stages_1/blocks_{}"), ("mobilenet_v2", "blocks_{}")],
)
def test_the_eleventh_block_follows_the_tenth(name, block):
    depth = depths_of(name)
    before = 1 if name == "resnet" else 0  # the block of its first stage
    assert [of_part(depth, block.format(i)) for i in range(12)] == [before + i + 1 for i in range(12)]


def test_the_blocks_of_a_stage_follow_those_of_the_stage_before():
    depth = depths_of("resnet")
    parts = ["stages_0/blocks_0", "stages_1/blocks_0", "stages_1/blocks_11", "stages_2/blocks_0", "stages_2/blocks_1"]
    assert [of_part(depth, part) for part in parts] == [1, 2, 13, 14, 15]


def test_what_halves_the_image_in_convnext_goes_with_the_first_block_behind_it():
    depth = depths_of("convnext")
    assert of_part(depth, "stages_1/downsample") == of_part(depth, "stages_1/blocks_0") == 2
    assert of_part(depth, "stages_2/downsample") == of_part(depth, "stages_2/blocks_0") == 4
    assert [of_part(depth, f"stages_2/blocks_{i}") for i in (9, 10)] == [13, 14]


@pytest.mark.parametrize(
    ("name", "which", "stem", "top"),
    [
        ("clip", 0, ("embeddings", "pre_layrnorm"), ("post_layernorm",)),
        ("siglip", 0, ("embeddings",), ("post_layernorm", "pooler")),
        ("vit", 0, ("embeddings",), ("post_layernorm", "pooler")),
        ("dinov2", 0, ("embeddings",), ("post_layernorm",)),
        ("resnet", 1, ("stem_0", "stem_1", "stem_2"), ()),
        ("convnext", 0, ("stem",), ("norm",)),
        ("mobilenet_v2", 0, ("stem",), ("top",)),
    ],
)
def test_the_stem_lies_at_zero_and_the_top_above_the_last_block(name, which, stem, top):
    depth = depths_of(name, which)
    last = max(value for path, value in depth.items() if path.split("/")[0] not in (*stem, *top))
    assert {of_part(depth, part) for part in stem} == {0}
    assert all(of_part(depth, part) == last + 1 for part in top)
    assert {path.split("/")[0] for path, value in depth.items() if value in (0, last + 1)} == {*stem, *top}


def test_a_leaf_that_the_order_does_not_know_is_named_with_the_way_out():
    order = DepthOrder(stem="stem", blocks=r"block_(\d+)")
    assert order.depths(["block_7", "block_3", "stem"]) == {"block_7": 2, "block_3": 1, "stem": 0}
    with pytest.raises(ModelError, match=r"the depth of head is not known: .*match it by a regular expression"):
        order.depths(["stem", "head", "block_0"])


def test_the_order_is_the_loaded_modules_own_and_a_module_without_one_has_none():
    class Plain(nn.Module):
        pass

    assert all(depth_order_of(family.module) for family in FAMILIES)
    assert depth_order_of(Plain()) is None


def test_a_bare_trees_order_is_that_of_the_one_family_with_such_paths():
    resnet = depths_of("resnet")
    assert depth_order_of_tree(resnet).depths(resnet) == resnet
    assert (
        depth_order_of_tree(["embeddings/class_embedding", "encoder/layers/0/mlp/fc1/kernel", "decoder/kernel"]) is None
    )
