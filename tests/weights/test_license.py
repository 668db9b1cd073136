import json
import shutil

import pytest
from paths import GOLDENS

from finetune.models.backbone import load_backbone
from finetune.weights.license import ungated_copy


def test_a_load_says_the_license_that_the_files_state(tmp_path):
    assert load_backbone("builtin:tiny-clip").license == "apache-2.0"  # its model card
    assert load_backbone(GOLDENS / "timm-vit-classifier").license == "apache-2.0"  # timm's configuration
    assert load_backbone(GOLDENS / "vit").license is None


@pytest.mark.parametrize(
    ("card", "license_"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# A model\n", "mit"),
        ("---\nlicense: other\nlicense_name: dinov3-license\n---\n", "dinov3-license"),
        ('---\nlicense: "cc-by-nc-4.0"\n---\n', "cc-by-nc-4.0"),
        ("# license: mit\nno front matter\n", None),
        ("---\ntags: [license]\n---\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_a_model_card_states_it_in_its_front_matter(tmp_path, card, license_):
    folder = tmp_path / "vit"
    shutil.copytree(GOLDENS / "vit", folder)
    (folder / "README.md").write_text(card)
    assert load_backbone(folder).license == license_


def test_gated_repositories_have_their_ungated_copies_named():
    assert ungated_copy("facebook/dinov3-vitb16-pretrain-lvd1689m") == "timm/vit_base_patch16_dinov3.lvd1689m"
    assert ungated_copy("facebook/dinov3-vitl16-pretrain-sat493m") == "timm/vit_large_patch16_dinov3.sat493m"
    assert ungated_copy("facebook/dinov3-convnext-tiny-pretrain-lvd1689m") == "timm/convnext_tiny.dinov3_lvd1689m"
    assert ungated_copy("facebook/dinov2-base") is None
    assert ungated_copy("facebook/dinov3-vitz16-pretrain-lvd1689m") is None


def test_timms_older_flat_configuration_is_read_as_its_newer_one(tmp_path):
    newer = GOLDENS / "timm-vit-classifier"
    folder = tmp_path / "flat"
    shutil.copytree(newer, folder)
    config = json.loads((newer / "config.json").read_text())
    settings = config.pop("pretrained_cfg") | {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.8, "interpolation": "bilinear"}
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    flat, nested = load_backbone(folder), load_backbone(newer)
    assert flat.config == nested.config
    assert flat.image_spec.mean == (0.1, 0.2, 0.3)
    assert (flat.image_spec.resize, flat.image_spec.interpolation) == (80, "bilinear")
    assert flat.license == nested.license
