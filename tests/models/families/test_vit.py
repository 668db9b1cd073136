from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
from closeness import assert_close
from paths import GOLDENS
from safetensors.numpy import load_file, save_file

from finetune.errors import ModelError
from finetune.models.backbone import load_backbone
from finetune.models.families import pe_core, vit


def read_timm(architecture="vit_tiny_patch16_224", names=("cls_token",), **arguments):
    """The configuration that a timm model is read as."""
    return vit.read_timm({"architecture": architecture, "model_args": arguments}, names).config


def test_the_attention_pooling_of_timm_reads_only_the_patches():
    config = read_timm(names=("cls_token", "attn_pool.latent"), global_pool="map")
    assert config.pooling == "attention"
    assert not config.pool_prefix


@pytest.mark.parametrize(
    ("architecture", "names", "pooling"),
    [
        ("vit_tiny_patch16_224", ["cls_token"], "class"),
        ("vit_medium_patch16_gap_256", [], "mean"),
        ("vit_medium_patch16_reg4_gap_256", ["reg_token"], "mean"),
        ("vit_base_patch16_siglip_gap_224", [], "mean"),
        ("vit_base_patch16_siglip_224", ["attn_pool.latent"], "attention"),
    ],
)
def test_where_the_files_say_no_pooling_it_is_that_of_the_architecture_in_timm(architecture, names, pooling):
    assert read_timm(architecture, names).pooling == pooling


@pytest.mark.parametrize(
    ("architecture", "read"),
    [("vit_tiny_patch16_224", vit.read_timm), ("vit_pe_core_tiny_patch16_384", pe_core.FAMILY.readers[0].read)],
)
def test_pooling_the_class_token_needs_one(architecture, read):
    with pytest.raises(ModelError, match="global_pool: 'token' needs a class token, and the weights have no cls_token"):
        read({"architecture": architecture, "global_pool": "token"}, ["pos_embed"])


def test_a_classifier_of_transformers_reads_the_class_token_also_where_its_file_has_a_pooler(tmp_path):
    golden, folder = GOLDENS / "vit-classifier", tmp_path / "vit"
    shutil.copytree(golden, folder)
    tensors, expected = load_file(folder / "model.safetensors"), np.load(golden / "expected.npz")
    pooler = {"vit.pooler.dense.weight": np.eye(16, dtype=np.float32), "vit.pooler.dense.bias": np.ones(16, np.float32)}
    save_file(tensors | pooler, folder / "model.safetensors")
    backbone = load_backbone(folder)
    features = jax.jit(backbone.module.apply)(backbone.variables, expected["pixel_values"]).pooler_output
    assert_close(features @ backbone.head.kernel + backbone.head.bias, expected["logits"])
    assert set(pooler) <= set(backbone.report.unused)


@pytest.mark.parametrize("head", ["classifier.weight", "cls_classifier.weight"])
def test_a_distilled_classifier_reads_no_pooler_either(head):
    names = ["deit.pooler.dense.weight", head]
    read = vit.FAMILY.reader("transformers", "deit").read
    assert read({"model_type": "deit"}, names).config.pooling == "class"
    assert read({"model_type": "deit"}, names[:1]).config.pooling == "tanh"


@pytest.mark.parametrize(
    ("architecture", "arguments", "count"),
    [
        ("vit_tiny_patch16_224", {"reg_tokens": 3}, 4),
        ("vit_tiny_patch16_224", {"reg_tokens": 3, "no_embed_class": True}, 0),
        ("vit_small_patch14_reg4_dinov2", {}, 0),
        ("vit_small_patch14_reg4_dinov2", {"no_embed_class": None}, 5),  # timm takes a file's null literally
    ],
)
def test_registers_of_timm_have_positions_where_the_class_token_has_one(architecture, arguments, count):
    assert read_timm(architecture, **arguments).position_prefix == count
