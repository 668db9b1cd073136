from __future__ import annotations

import json
import shutil
from math import log

import jax
import numpy as np
import pytest
from closeness import assert_close
from paths import GOLDENS
from safetensors.numpy import load_file, save_file

from finetune.models.backbone import load_backbone, load_clip

GOLDEN = GOLDENS / "tipsv2"
TEXTS = ["a Bd", "c", "dad ab cab bad"]  # of the golden; the last has more tokens than the tower reads


@pytest.fixture(scope="module")
def tipsv2():
    return load_clip(GOLDEN)


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(GOLDEN / "expected.npz"))


def test_both_towers_agree_with_pytorch(tipsv2, expected):
    arguments = (expected["input_ids"], expected["pixel_values"], expected["attention_mask"])
    output = jax.jit(tipsv2.module.apply)(tipsv2.variables, *arguments)
    assert_close(output.text_model_output.pooler_output, expected["text_pooler_output"])
    assert_close(output.text_embeds, expected["text_embeds"])
    assert_close(output.image_embeds, expected["image_embeds"])
    assert_close(output.logits_per_image, expected["logits_per_image"])


def test_texts_are_tokenized_as_transformers_does_and_their_padding_is_not_read(tipsv2, expected):
    assert (expected["attention_mask"].sum(axis=1) == [4, 2, 8]).all()
    assert_close(tipsv2.embed_texts(TEXTS), expected["text_embeds"])


def test_a_checkpoint_without_the_temperature_has_that_of_its_configuration(tmp_path, expected):
    """As the published ones."""
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    tensors = load_file(GOLDEN / "model.safetensors")
    del tensors["temperature"]
    save_file(tensors, tmp_path / "model.safetensors")
    clip = load_clip(tmp_path)
    assert clip.variables["params"]["logit_scale"] == pytest.approx(-log(0.005065968260169029))
    assert ("config.json: logit_scale", "params/logit_scale") in clip.report.transferred


def test_of_a_model_without_its_text_tower_the_vision_tower_is_read(tmp_path, expected):
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    tensors = load_file(GOLDEN / "model.safetensors")
    save_file({name: tensors[name] for name in tensors if "vision" in name}, tmp_path / "model.safetensors")
    backbone = load_backbone(tmp_path)
    assert backbone.text is None
    assert_close(
        backbone.module.apply(backbone.variables, expected["pixel_values"]).pooler_output, expected["pooler_output"]
    )


def test_images_are_not_normalized():
    spec = load_backbone(GOLDEN).image_spec
    assert (spec.mean, spec.std, spec.interpolation) == ((0.0,) * 3, (1.0,) * 3, "bilinear")


def test_token_embeddings_are_scaled_where_the_configuration_says_so(tmp_path):
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    config = json.loads((GOLDEN / "config.json").read_text())
    assert load_clip(GOLDEN).config.text_config.embedding_scale == 4
    config["text_config"]["scale_sqrt_depth"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_clip(tmp_path).config.text_config.embedding_scale == 1
