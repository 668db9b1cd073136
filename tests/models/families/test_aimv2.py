from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from paths import GOLDENS
from pytorch_gradients import gradient_errors
from safetensors.numpy import load_file, save_file

from finetune.errors import ModelError
from finetune.models.backbone import load_backbone

GOLDEN = GOLDENS / "aimv2-step"


@pytest.fixture
def changed(tmp_path):
    """The golden with other values in its configuration."""

    def change(**values):
        shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
        file = tmp_path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return tmp_path

    return change


def test_every_gradient_is_that_of_pytorch():
    assert max(gradient_errors(GOLDEN).values()) < 1e-4


def test_without_a_head_the_patches_are_averaged(changed):
    folder = changed(use_head=False)
    tensors = load_file(GOLDEN / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith("head.")}, folder / "model.safetensors")
    backbone, pixels = load_backbone(folder), np.load(GOLDEN / "expected.npz")["pixel_values"]
    output = backbone.module.apply(backbone.variables, pixels)
    np.testing.assert_allclose(output.pooler_output, output.last_hidden_state.mean(axis=1), atol=1e-5)


@pytest.mark.parametrize("values", [{"is_native": True}, {"hidden_act": "gelu"}])
def test_what_is_not_supported_is_said(changed, values):
    with pytest.raises(ModelError, match=next(iter(values))):
        load_backbone(changed(**values))
