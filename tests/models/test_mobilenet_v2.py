"""MobileNetV2 with weights that were trained on ImageNet: real parameters and real running statistics."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from finetune.models.backbone import Backbone, load_backbone
from finetune.models.classifier import build_classifier
from finetune.training.probe import fit_probe
from finetune.training.step import make_feature_step


@pytest.fixture(scope="module")
def folder(shared) -> Path:
    return shared / "weights" / "mobilenetv2_100"


@pytest.fixture(scope="module")
def mobilenet(folder) -> Backbone:
    return load_backbone(folder)


def test_features_agree_with_pytorch(mobilenet, folder):
    pixels = np.random.default_rng(1).standard_normal((4, 224, 224, 3)).astype(np.float32)
    expected = np.load(folder / "expected.npz")["features"]
    features = jax.jit(mobilenet.module.apply)(mobilenet.variables, pixels).pooler_output
    assert np.abs(features - expected).max() <= 1e-4 * np.abs(expected).max()


def test_parameters_and_running_statistics_are_transferred(mobilenet):
    assert len(mobilenet.report.transferred) == 260
    assert all(name.endswith("num_batches_tracked") for name in mobilenet.report.unused)
    variances = [leaf for leaf in jax.tree.leaves(mobilenet.variables["batch_stats"]) if leaf.ndim]
    assert any(np.abs(np.asarray(leaf) - 1).max() > 0.1 for leaf in variances)


def test_the_image_spec_is_the_checkpoints_own(mobilenet):
    spec = mobilenet.image_spec
    assert (spec.height, spec.width, spec.resize, spec.interpolation) == (224, 224, 256, "bicubic")
    assert spec.mean == (0.485, 0.456, 0.406)


@pytest.mark.slow
def test_a_linear_probe_on_photographs_is_far_above_random_weights(mobilenet, shared):
    from datasets import load_dataset
    from PIL import Image

    data = load_dataset("parquet", data_dir=str(shared / "data" / "cifar10"), split={"train": "train", "test": "test"})
    splits = {name: data[name].shuffle(seed=0).select(range(2000 if name == "train" else 1000)) for name in data}
    label = next(name for name in data["train"].column_names if name != "image" and name != "img")
    picture = "image" if "image" in data["train"].column_names else "img"
    # 96 pixels: nine times the photographs' own resolution already, at a fifth of the cost of 224
    spec = mobilenet.image_spec.at(96)
    fresh = mobilenet.module.init(jax.random.key(0), np.zeros((1, 96, 96, 3), np.float32))

    def features(variables, split):
        classifier, whole = build_classifier((mobilenet.module, variables), 10, image_size=96)
        step = partial(make_feature_step(classifier, spec), whole)
        images = [
            spec.to_uint8(p.convert("RGB").resize((107, 107), Image.Resampling.BICUBIC)) for p in split[picture]
        ]
        return np.concatenate([step(np.stack(images[i : i + 100])) for i in range(0, len(images), 100)])

    accuracy = {}
    for name, variables in {"pretrained": mobilenet.variables, "random": fresh}.items():
        kernel, bias, _ = fit_probe(features(variables, splits["train"]), np.array(splits["train"][label]), 10)
        logits = features(variables, splits["test"]) @ np.asarray(kernel) + np.asarray(bias)
        accuracy[name] = float((logits.argmax(1) == np.array(splits["test"][label])).mean())
    print(accuracy)
    assert accuracy["pretrained"] > 0.7
    assert accuracy["pretrained"] > accuracy["random"] + 0.3
