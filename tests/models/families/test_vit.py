from __future__ import annotations

from finetune.models.families import vit


def read_timm(architecture="vit_tiny_patch16_224", names=("cls_token",), **arguments):
    """The configuration that a timm model is read as."""
    return vit.read_timm({"architecture": architecture, "model_args": arguments}, names).config


def test_the_attention_pooling_of_timm_reads_only_the_patches():
    config = read_timm(names=("cls_token", "attn_pool.latent"), global_pool="map")
    assert config.pooling == "attention"
    assert not config.pool_prefix
