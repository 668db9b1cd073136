"""EfficientNet, MobileNetV3 and MobileNetV4: their blocks, and every architecture that is read from timm."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from paths import GOLDENS
from pytorch_gradients import gradient_errors

from finetune.errors import ModelError
from finetune.models.backbone import load_backbone
from finetune.models.families.efficientnet.architectures import ARCHITECTURES, NamedBlock
from finetune.models.families.efficientnet.module import BlockConfig, EfficientNetBlock, EfficientNetConfig
from finetune.models.families.efficientnet.timm import block_names, read_timm
from finetune.models.families.efficientnet.transformers import read_transformers
from finetune.optim.selectors import select
from finetune.weights.names import apply_table

SIZES = {"input_size": 8, "hidden_size": 8, "shortcut": True}
BLOCKS = {
    "ds": BlockConfig(**SIZES, inner_size=8, depthwise=3, squeezed=8, hidden_act="relu"),
    "ir": BlockConfig(**SIZES, inner_size=24, expand=1, depthwise=5, squeezed=8, hidden_act="hard_swish"),
    "er": BlockConfig(input_size=8, hidden_size=16, inner_size=32, stride=2, expand=3, hidden_act="relu"),
    "uir": BlockConfig(**SIZES, inner_size=16, first_depthwise=5, expand=1, depthwise=3, hidden_act="relu"),
    "uir_start": BlockConfig(
        input_size=8, hidden_size=16, inner_size=16, stride=2, first_depthwise=3, expand=1, hidden_act="relu"
    ),
    "uir_dense": BlockConfig(**SIZES, inner_size=16, expand=1, hidden_act="relu"),
}


@pytest.fixture(scope="module")
def shapes():
    """Architecture -> name of each kernel -> its shape in timm."""
    return json.loads(np.load(GOLDENS / "timm-efficientnet-shapes" / "expected.npz")["shapes"].tobytes())


@pytest.mark.parametrize("name", BLOCKS)
def test_outputs_and_gradients_of_each_kind_of_block_are_those_of_pytorch(name):
    expected = np.load(GOLDENS / "mobile-blocks" / "expected.npz")
    block, kind = BLOCKS[name], name.split("_")[0]

    def tree(prefix):
        tensors = {f"block.{key.removeprefix(prefix)}": expected[key] for key in expected if key.startswith(prefix)}
        named = apply_table(tensors, block_names(NamedBlock("block", kind, block), "block"))
        assert not named.unknown
        return unflatten_dict({(path[0], *path[2:]): np.asarray(leaf) for path, leaf in named.leaves.items()})

    variables, theirs = tree(f"{name}/state/"), flatten_dict(tree(f"{name}/grad/")["params"])
    network = EfficientNetConfig(stem_size=8, blocks=(block,), squeeze_act="relu", squeeze_gate="hard_sigmoid")
    module = EfficientNetBlock(network, 0)

    def loss_fn(params):
        y = module.apply({**variables, "params": params}, expected[f"{name}/x"])
        return jnp.square(y).mean(), y

    ours, y = jax.jit(jax.grad(loss_fn, has_aux=True))(variables["params"])
    np.testing.assert_allclose(y, expected[f"{name}/y"], rtol=0, atol=2e-5 * np.abs(expected[f"{name}/y"]).max())
    ours = flatten_dict(ours)
    assert ours.keys() == theirs.keys()
    for path, gradient in theirs.items():
        assert np.abs(ours[path] - gradient).max() <= 1e-4 * np.abs(gradient).max(), path


@pytest.mark.slow
def test_gradients_of_all_parameters_of_a_network_are_those_of_pytorch():
    errors = gradient_errors(GOLDENS / "efficientnet-step")
    assert len(errors) > 40
    assert max(errors.values()) < 1e-4, max(errors, key=errors.__getitem__)


def kernels(config):
    """Path -> shape of the kernel of each convolution and dense layer, written out from the configuration."""
    last = config.blocks[-1].hidden_size
    dense = config.top in ("dense", "dense without bias")
    found = {
        "stem/conv": (3, 3, 3, config.stem_size),
        "top" if dense else "top/conv": (last, config.num_features) if dense else (1, 1, last, config.num_features),
    }
    for i, block in enumerate(config.blocks):
        width, inner = block.input_size, block.inner_size
        steps = {
            "first_depthwise": (block.first_depthwise, 1, width),
            "expand": (block.expand, width, inner),
            "depthwise": (block.depthwise, 1, inner),
            "project": (int(block.project), inner, block.hidden_size),
        }
        found |= {f"blocks_{i}/{step}/conv": (k, k, *channels) for step, (k, *channels) in steps.items() if k}
        if block.squeezed:
            found[f"blocks_{i}/squeeze_excite/reduce"] = (inner, block.squeezed)
            found[f"blocks_{i}/squeeze_excite/expand"] = (block.squeezed, inner)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_the_layers_and_channels_of_timm(architecture, shapes):
    reading = read_timm({"architecture": architecture}, ())
    tensors = {name: np.broadcast_to(np.int8(0), shape) for name, shape in shapes[architecture].items()}
    named = apply_table(tensors, reading.names)
    assert not named.unknown
    assert not named.dropped
    theirs = {"/".join(path[1:-1]): leaf.shape for path, leaf in named.leaves.items()}
    assert kernels(reading.config) == theirs


def test_architectures_that_are_not_read_are_of_other_kinds(shapes):
    others = {name for name in shapes if name not in ARCHITECTURES}
    kinds = ("_gn", "_evos", "_ln", "_cc_", "blur", "_aa_", "efficientnet_x", "efficientnet_h", "gc_")
    assert all(any(kind in name for kind in kinds) for name in others), others


def test_depths_are_shared_out_from_the_end_of_a_stage():
    config = read_timm({"architecture": "mobilenetv3_large_150d"}, ()).config
    inner = [block.inner_size for block in config.blocks if block.hidden_size == 120]
    assert inner == [384, 304, 304, 280, 280]  # 1 + 1 + 2 blocks times 1.2 are 1 + 2 + 2


def test_the_names_of_an_extra_option_are_in_the_error():
    config = {"architecture": "efficientnet_b0", "model_args": {"norm_layer": "groupnorm"}}
    with pytest.raises(ModelError, match="model_args: not supported for efficientnet_b0: norm_layer"):
        read_timm(config, ())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pad_type": "valid"}, "pad_type: only '' and 'same'"),
        ({"output_stride": 16}, "output_stride: only 32"),
        ({"global_pool": "max"}, "global_pool: only 'avg'"),
        ({"act_layer": "mish"}, "unknown activation 'mish'"),
    ],
)
def test_variants_of_timm_that_are_not_supported_are_refused(option, message):
    with pytest.raises(ModelError, match=message):
        read_timm({"architecture": "efficientnet_b0", "model_args": option}, ())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pooling_type": "max"}, "pooling_type: only 'mean'"),
        ({"hidden_dim": 1280}, "hidden_dim: the last convolution has 2560 channels"),
        ({"hidden_act": "mish"}, "unknown activation 'mish'"),
    ],
)
def test_variants_of_transformers_that_are_not_supported_are_refused(option, message):
    with pytest.raises(ModelError, match=message):
        read_transformers({"model_type": "efficientnet", **option}, ())


def test_selectors_match_norms_biases_and_blocks():
    backbone = load_backbone(GOLDENS / "efficientnet-step")
    order = type(backbone.module).depth_order
    paths = {f"backbone/{path}" for path in flatten_dict(backbone.variables["params"], sep="/")}
    assert {path.split("/")[-2] for path in select("norms", paths)} == {"norm"}
    assert "backbone/blocks_0/squeeze_excite/reduce/bias" in select("biases", paths)
    last = len(backbone.config.blocks) - 1
    assert {path.split("/")[1] for path in select("blocks[-1]", paths, order)} == {f"blocks_{last}"}
