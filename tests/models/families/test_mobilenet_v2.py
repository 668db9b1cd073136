"""MobileNetV2 with weights that were trained on ImageNet: real parameters and real running statistics."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from finetune.models.backbone import Backbone, load_backbone


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
