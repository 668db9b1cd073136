from __future__ import annotations

import json
import shutil

import pytest
from paths import GOLDENS

from finetune.errors import ModelError
from finetune.models.backbone import load_backbone

SIZES = ("image_size", "patch_size")


@pytest.fixture(params=["vit", "deit", "beit-step", "swin-step", "swinv2-step", "dinov3-step", "ijepa", "vit-mae"])
def resized(request, tmp_path):
    """A golden whose sizes are changed in its configuration."""

    def change(new):
        folder = shutil.copytree(GOLDENS / request.param, tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {name: new(config[name]) for name in SIZES}))
        return folder

    return change, GOLDENS / request.param


def test_a_square_may_be_given_as_two_equal_edges(resized):
    change, golden = resized
    assert load_backbone(change(lambda edge: [edge, edge])).config == load_backbone(golden).config


def test_two_edges_that_differ_are_refused(resized):
    change, _ = resized
    message = r"only square images and patches are supported; received image_size \[\d+, \d+\], patch_size \["
    with pytest.raises(ModelError, match=message):
        load_backbone(change(lambda edge: [edge, 2 * edge]))
