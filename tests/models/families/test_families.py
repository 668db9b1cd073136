"""Tests that every model family has to pass. They find its reference checkpoints by themselves."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import TOLERANCE, assert_close
from flax.traverse_util import flatten_dict
from paths import GOLDENS, ROOT

from finetune.export.bundle import load_bundle, save_bundle
from finetune.models.backbone import load_backbone
from finetune.models.classifier import build_classifier
from finetune.models.depth import depth_order_of
from finetune.models.pretrained import find_reader
from finetune.models.registry import FAMILIES
from finetune.models.surgery import extract_submodule
from finetune.optim.schedules import StageLength
from finetune.optim.selectors import is_embedding
from finetune.recipe import TrainStage
from finetune.training.stage_trainer import StageTrainer
from finetune.weights.layout import open_checkpoint

# of goldens whose random weights amplify rounding from layer to layer, in PyTorch as well
TOLERANCES = {"mobilenet-v2": 1e-4, "mobilenet-v2-classifier": 1e-4}
# Beside the first golden of each family, those of variants that share no code with it.
VARIANTS = {"deit", "dinov2-swiglu", "swinv2-step", "timm-convnextv2"}


def checkpoint_names(folder):
    """Small random models as each library saves them, with PyTorch's outputs."""
    files = folder.glob("*/expected.npz") if folder.is_dir() else ()
    return sorted(file.parent.name for file in files if list(file.parent.glob("*.safetensors")))


def family_and_reader(folder):
    checkpoint = open_checkpoint(folder)
    return find_reader(checkpoint)


REFERENCE = ROOT.parent / "shared" / "goldens"
OWN = checkpoint_names(GOLDENS)
SHARED = checkpoint_names(REFERENCE)
CASES = [("own", name) for name in OWN if name != "batchnorm-step"] + [("shared", name) for name in SHARED]
QUICK = {"clip", "resnet", "vit"}  # the families whose routine is not left to CI


def first_of_each_family():
    first = {}
    for name in sorted(OWN, key=lambda name: "classifier" in name or name == "batchnorm-step"):
        first.setdefault(family_and_reader(GOLDENS / name)[0].name, name)
    return first


FIRST = first_of_each_family()


def routine():
    """The goldens that stand for their families in the tests below."""
    quick = {name for family, name in FIRST.items() if family in QUICK}
    names = sorted({*FIRST.values(), *VARIANTS})
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def outputs(backbone, pixels):
    return jax.jit(backbone.module.apply)(backbone.variables, pixels)


def case(where, name):
    quick = where == "own" and name in {*FIRST.values(), *VARIANTS}
    return pytest.param((where, name), id=f"{where}/{name}", marks=[] if quick else [pytest.mark.slow])


@pytest.fixture(params=[case(*pair) for pair in CASES])
def golden(request) -> Path:
    where, name = request.param
    return GOLDENS / name if where == "own" else request.getfixturevalue("goldens") / name


def test_features_agree_with_pytorch(golden):
    expected = np.load(golden / "expected.npz")
    tolerance = TOLERANCES.get(golden.name, TOLERANCE)
    compared = 0
    for key in (key for key in expected if key.startswith("pixel_values")):
        other = key.removeprefix("pixel_values")  # such as _48: at another image size than the checkpoint's
        backbone = load_backbone(golden, image_size=int(other[1:]) if other else None)
        assert backbone.report.transferred
        assert backbone.report.fresh == ()
        output = outputs(backbone, expected[key])
        for name in ("pooler_output", "features"):
            if name + other in expected:
                theirs = expected[name + other]
                assert_close(output.pooler_output, theirs.reshape(len(theirs), -1), tolerance)
                compared += 1
        if "last_hidden_state" + other in expected:
            theirs = expected["last_hidden_state" + other]
            theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
            assert_close(output.last_hidden_state, theirs, tolerance)
            compared += 1
        if "image_embeds" + other in expected:
            embeds = output.pooler_output @ backbone.text.image_projection
            assert_close(embeds / jnp.linalg.norm(embeds, axis=-1, keepdims=True), expected["image_embeds" + other])
            compared += 1
        if "logits" + other in expected:
            kernel, bias = backbone.head.select([f"class {i}" for i in range(5)])
            assert_close(output.pooler_output @ kernel + bias, expected["logits" + other], tolerance)
            compared += 1
    assert compared


@pytest.fixture(scope="module", params=routine())
def member(request):
    """(name, backbone, images of its size)."""
    backbone = load_backbone(GOLDENS / request.param)
    size = backbone.image_spec.height if hasattr(backbone.config, "image_size") else 64
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3)).astype(np.uint8)
    return request.param, backbone, images


def test_every_tensor_of_the_checkpoint_is_accounted_for(member):
    name, backbone, _ = member
    variables = backbone.text.variables if backbone.text else backbone.variables
    targets = {target for _, target in backbone.report.transferred}
    assert targets == {"/".join(path) for path in flatten_dict(variables)}
    assert all(
        tensor.rsplit(".", 1)[-1] in {"num_batches_tracked", "mask_token"} for tensor in backbone.report.unused
    ), name


@pytest.mark.slow
def test_bfloat16_compute_stays_close_to_float32(member):
    name, backbone, images = member
    half = load_backbone(GOLDENS / name, dtype=jnp.bfloat16, image_size=None)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.variables)} == {jnp.dtype("float32")}
    pixels = backbone.image_spec.normalize(images)
    ours, exact = outputs(half, pixels).pooler_output, outputs(backbone, pixels).pooler_output
    assert ours.dtype == jnp.bfloat16
    assert half.module == backbone.module.clone(dtype=jnp.bfloat16)
    assert np.linalg.norm(ours.astype(jnp.float32) - exact) < 0.1 * np.linalg.norm(exact)


@pytest.mark.parametrize("train", [False, True])
def test_in_bfloat16_every_submodule_outputs_bfloat16(member, train):
    _, backbone, images = member
    apply = partial(
        backbone.module.clone(dtype=jnp.bfloat16).apply,
        train=train,
        capture_intermediates=True,
        mutable=["intermediates", *backbone.variables],
    )
    pixels = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    _, collections = jax.eval_shape(apply, backbone.variables, pixels, rngs={"dropout": jax.random.key(0)})
    intermediates = flatten_dict(collections.pop("intermediates"), sep="/")
    assert len(intermediates) > 10
    wide = {
        name for name, value in intermediates.items() for leaf in jax.tree.leaves(value) if leaf.dtype != jnp.bfloat16
    }
    assert not wide
    assert {leaf.dtype for leaf in jax.tree.leaves(collections)} == {jnp.dtype("float32")}


def test_another_image_size_gives_features_of_the_same_width(member):
    name, backbone, _ = member
    size = 7 * getattr(getattr(backbone.module, "config", None), "patch_size", 14)
    other = load_backbone(GOLDENS / name, image_size=size)
    assert (other.image_spec.height, other.image_spec.width) == (size, size)
    shapes = jax.eval_shape(other.module.apply, other.variables, jnp.zeros((2, size, size, 3)))
    assert shapes.pooler_output.shape == (2, backbone.num_features)


def test_every_leaf_has_a_depth_and_no_depth_is_skipped(member):
    _, backbone, _ = member
    depths = depth_order_of(backbone.module).depths(list(flatten_dict(backbone.variables["params"], sep="/")))
    assert set(depths.values()) == set(range(max(depths.values()) + 1))
    assert len(set(depths.values())) > 2


def test_a_submodule_can_be_extracted(member):
    _, backbone, _ = member
    parts = {name: tree for name, tree in backbone.variables["params"].items() if isinstance(tree, dict)}
    largest = max(parts, key=lambda name: sum(leaf.size for leaf in jax.tree.leaves(parts[name])))
    path = re.sub(r"_(\d+)$", r".\1", largest)  # stages_0 is one of a list of modules
    path += ".0" if "0" in parts[largest] else ""
    module, variables = extract_submodule(backbone.module, backbone.variables, path)
    assert jax.tree.leaves(variables["params"])
    inside = {id(leaf) for leaf in jax.tree.leaves(backbone.variables)}
    assert {id(leaf) for leaf in jax.tree.leaves(variables)} <= inside
    assert type(module).__name__ != type(backbone.module).__name__


@pytest.mark.long  # each family's step is compiled in the next test, which CI runs
def test_one_training_step_changes_every_leaf_and_every_running_statistic(member):
    _, backbone, images = member
    classifier, variables = build_classifier(backbone, 3, head_init="lecun_normal")
    stage = TrainStage(steps=10, partitions=[{"match": ".*", "optimizer": "sgd", "learning_rate": 1.0}])
    training = StageTrainer(stage, classifier, variables, backbone.image_spec, StageLength(10))
    before = jax.tree.map(np.array, variables)
    batch = {"image": images, "label": np.array([0, 1, 2, 0])}
    state, metrics = training.step(training.init_state(), training.frozen, batch)
    assert np.isfinite(metrics["loss"])
    after = flatten_dict({"params": state.params, **state.collections})
    for path, old in flatten_dict(before).items():
        new = after[path]
        assert np.isfinite(new).all(), path
        # softmax does not change when the same vector is added to all keys, nor batch normalization behind a 1x1
        # convolution when one is added to all pixels
        unseen = path[-2:] in {("k_proj", "bias"), ("norm", "bias")}
        assert unseen or np.abs(new - old).max() > 0, path


@pytest.mark.slow
def test_a_stage_with_everything_people_set_trains(member):
    """Frozen norms and embeddings, layer decay, adapters, rematerialization, bfloat16, stochastic depth."""
    name, backbone, images = member
    drop_path = None if name == "open-clip-resnet" else 0.1  # these have no stochastic depth in open_clip
    backbone = load_backbone(GOLDENS / name, dtype=jnp.bfloat16, drop_path=drop_path)
    classifier, variables = build_classifier(backbone, 3, head_init="lecun_normal")
    leaves = flatten_dict(variables["params"]["backbone"], sep="/")
    dense = [
        path for path, leaf in leaves.items() if path.endswith("kernel") and leaf.ndim == 2 and min(leaf.shape) > 1
    ]
    embeddings = any(is_embedding(path) for path in leaves)
    rules = [
        {"match": "head", "learning_rate": 1e-2},
        {"match": "norms", "frozen": True},
        *([{"match": "embeddings", "frozen": True}] if embeddings else []),
        *([{"match": f"backbone/{dense[0]}", "learning_rate": 1e-2, "lora": {"rank": 2}}] if dense else []),
        {"match": "blocks[-1]", "learning_rate": 1e-2},
        {"match": "backbone", "learning_rate": 1e-2, "layer_decay": 0.5},
    ]
    stage = TrainStage(steps=10, batch_size=4, partitions=rules, remat=True)
    training = StageTrainer(stage, classifier, variables, backbone.image_spec, StageLength(10))
    before = jax.tree.map(np.array, training.init_state().params)
    batch = {"image": images, "label": np.array([0, 1, 2, 0])}
    state, metrics = training.step(training.init_state(), training.frozen, batch)
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda old, new: float(np.abs(new - old).max()), before, state.params)
    assert all(np.isfinite(value) for value in jax.tree.leaves(moved))
    assert sum(value > 0 for value in jax.tree.leaves(moved)) > 5


def test_a_bundle_restores_the_same_module_and_the_same_bytes(member, tmp_path):
    _, backbone, _ = member
    classifier, variables = build_classifier(backbone, 3)
    save_bundle(tmp_path / "model", classifier, variables, backbone=backbone, class_names=("a", "b", "c"))
    bundle = load_bundle(tmp_path / "model")
    assert bundle.classifier == classifier
    assert bundle.image_spec == backbone.image_spec
    restored = flatten_dict(bundle.variables)
    assert restored.keys() == flatten_dict(variables).keys()
    for path, leaf in flatten_dict(variables).items():
        np.testing.assert_array_equal(restored[path], leaf, err_msg="/".join(path))


def test_a_training_step_leaves_the_running_statistics_and_gradients_of_pytorch():
    expected = np.load(GOLDENS / "batchnorm-step" / "expected.npz")
    backbone = load_backbone(GOLDENS / "batchnorm-step")
    statistics = backbone.variables["batch_stats"]

    @jax.jit
    def step(params):
        def loss_fn(params):
            variables = {"params": params, "batch_stats": statistics}
            output, updated = backbone.module.apply(
                variables, expected["pixel_values"], train=True, mutable=["batch_stats"]
            )
            return (output.pooler_output**2).mean(), (output.pooler_output, updated["batch_stats"])

        return jax.value_and_grad(loss_fn, has_aux=True)(params)

    (loss, (pooled, after)), gradients = step(backbone.variables["params"])
    assert_close(pooled, expected["pooler_output"].reshape(pooled.shape))
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-5)
    compared = 0
    for tensor, target in backbone.report.transferred:
        collection, *path = target.split("/")
        theirs = expected[f"grad/{tensor}" if collection == "params" else f"after/{tensor}"]
        ours = flatten_dict(gradients if collection == "params" else after)[tuple(path)]
        assert_close(ours, theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs)
        compared += 1
    assert compared == 30


def test_everything_listed_as_verified_has_a_reference_checkpoint(goldens):
    tested: dict[tuple[str, str], set[str]] = {}
    for where, name in [*CASES, ("own", "batchnorm-step")]:
        folder = GOLDENS / name if where == "own" else goldens / name
        expected = np.load(folder / "expected.npz")
        family, reader = family_and_reader(folder)
        claims = tested.setdefault((family.name, reader.model_types), set())
        claims |= {"features"} if {"pooler_output", "features", "image_embeds"} & set(expected) else set()
        claims |= {"other image sizes"} if any(key.startswith("pixel_values_") for key in expected) else set()
        claims |= {"text features"} if "text_embeds" in expected else set()
        claims |= {"logits"} if "logits" in expected else set()
        claims |= {"a training step"} if "loss" in expected else set()
    listed = {
        (family.name, reader.model_types): set(reader.verified) for family in FAMILIES for reader in family.readers
    }
    timm_mobilenet = next((f.name, r.model_types) for f in FAMILIES for r in f.readers if r.label == "mobilenetv2_*")
    tested[timm_mobilenet] = {"features"}  # real weights: test_mobilenet_v2.py
    assert listed == tested
