import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune.errors import ModelError
from finetune.weights.layout import open_checkpoint, read_json

TRANSFORMERS = {"model_type": "vit", "hidden_size": 8}
TIMM = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}
OPEN_CLIP = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}}


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of configurations; None leaves a file out."""

    def make(config=None, open_clip=None):
        for name, content in {"config.json": config, "open_clip_config.json": open_clip}.items():
            if content is not None:
                (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("files", "prefer", "found"),
    [
        ({"config": TRANSFORMERS}, False, ("transformers", "vit", "config.json")),
        ({"config": TIMM}, False, ("timm", "vit_tiny_patch16_224", "config.json")),
        ({"open_clip": OPEN_CLIP}, False, ("open_clip", "open_clip", "open_clip_config.json")),
        ({"open_clip": OPEN_CLIP}, True, ("open_clip", "open_clip", "open_clip_config.json")),
        # timm's copies of CLIP have both: the vision tower alone, or the whole where it is asked for
        ({"config": TIMM, "open_clip": OPEN_CLIP}, False, ("timm", "vit_tiny_patch16_224", "config.json")),
        ({"config": TIMM, "open_clip": OPEN_CLIP}, True, ("open_clip", "open_clip", "open_clip_config.json")),
        # LAION's have both too, each of them of the whole
        ({"config": TRANSFORMERS, "open_clip": OPEN_CLIP}, True, ("transformers", "vit", "config.json")),
        ({"config": {**TRANSFORMERS, **TIMM}}, False, ("transformers", "vit", "config.json")),
    ],
)
def test_the_layout_is_that_of_the_configuration(folder, files, prefer, found):
    checkpoint = open_checkpoint(folder(**files), prefer_open_clip=prefer)
    assert (checkpoint.layout, checkpoint.model_type, checkpoint.file.name) == found
    assert checkpoint.config == json.loads(checkpoint.file.read_text())
    assert checkpoint.file.parent == checkpoint.folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {},
            r"not a checkpoint: it has neither config.json \(transformers, timm\) nor open_clip_config.json; give",
        ),
        ({"config": {"hidden_size": 8}}, r"/config.json: has neither model_type \(transformers\) nor architecture"),
        ({"config": {"architecture": ["ViT"]}}, "/config.json: has neither model_type"),
        ({"config": "{"}, "/config.json: cannot be read as JSON"),
        ({"config": "[1]"}, "/config.json: needs a JSON object; received list"),
        ({"open_clip": "nothing"}, "/open_clip_config.json: cannot be read as JSON"),
        ({"open_clip": {}}, "/open_clip_config.json: needs a model_cfg with embed_dim, vision_cfg and text_cfg"),
        ({"open_clip": {"model_cfg": "ViT-B-32"}}, "/open_clip_config.json: needs a model_cfg with"),
        ({"open_clip": {"model_cfg": {"embed_dim": 8, "vision_cfg": {}}}}, "/open_clip_config.json: needs a model_cfg"),
    ],
)
def test_a_folder_that_is_no_checkpoint_says_what_it_lacks(folder, files, message):
    with pytest.raises(ModelError, match=message):
        open_checkpoint(folder(**files))


def test_a_preferred_configuration_that_is_damaged_is_named(folder):
    with pytest.raises(ModelError, match="/open_clip_config.json: cannot be read as JSON"):
        open_checkpoint(folder(TIMM, "{"), prefer_open_clip=True)


@pytest.mark.parametrize(("files", "value"), [({"config": TIMM}, 1), ({"open_clip": OPEN_CLIP}, 2)])
def test_each_layout_reads_its_own_weights_where_both_are_there(folder, files, value):
    checkpoint = open_checkpoint(folder(**files))
    save_file({"a": np.full(3, 1)}, checkpoint.folder / "model.safetensors")
    save_file({"a": np.full(3, 2)}, checkpoint.folder / "open_clip_model.safetensors")
    np.testing.assert_array_equal(checkpoint.tensors["a"], np.full(3, value))


@pytest.mark.parametrize("name", ["model.safetensors", "open_clip_model.safetensors"])
def test_open_clips_weights_are_read_under_either_name(folder, name):
    checkpoint = open_checkpoint(folder(open_clip=OPEN_CLIP))
    save_file({"a": np.arange(3)}, checkpoint.folder / name)
    np.testing.assert_array_equal(checkpoint.tensors["a"], np.arange(3))


def test_weights_are_looked_for_when_they_are_asked_for(folder):
    checkpoint = open_checkpoint(folder(TRANSFORMERS))
    with pytest.raises(ModelError, match="no weights; expected model.safetensors"):
        len(checkpoint.tensors)


def test_json_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.json").write_bytes('{"a": "é"}'.encode("latin-1"))
    for name in ("latin.json", "absent.json"):
        with pytest.raises(ModelError, match=f"{name}: cannot be read as JSON: "):
            read_json(tmp_path / name)
