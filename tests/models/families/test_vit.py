from __future__ import annotations

import pytest

from finetune.errors import ModelError
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
