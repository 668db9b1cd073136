"""Bundles of every format, as the versions that had it wrote them."""

import json

import numpy as np
import pytest
from bundles import BUNDLES, copy_bundle, describe, rewrite

import finetune
from finetune.errors import CheckpointError
from finetune.export.bundle import read_description, save_bundle_like
from finetune.export.description import FORMAT

FORMATS = sorted(folder.name for folder in BUNDLES.iterdir() if folder.is_dir())


def test_every_format_that_ever_was_has_a_bundle():
    assert {describe(BUNDLES / name)["format"] for name in FORMATS} == set(range(1, FORMAT + 1))


@pytest.mark.parametrize("name", FORMATS)
def test_every_description_is_read_as_one_of_the_current_format(name):
    description = read_description(BUNDLES / name)
    assert description.format == FORMAT
    assert description.class_names == ["cat", "été", "owl"]
    assert description.multi_label == (name in ("format-2-headless", "format-3-labels", "format-4-labels"))
    assert (description.confidence is None) == (name in ("format-1", "format-3") or name.startswith("format-2"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_every_bundle_says_what_it_said_to_the_version_that_wrote_it(name):
    expected = json.loads((BUNDLES / name / "expected.json").read_text())
    drawn = expected["images"]
    images = np.random.default_rng(drawn["seed"]).integers(0, 256, drawn["shape"], dtype=np.uint8)
    predictor = finetune.restore(BUNDLES / name)
    np.testing.assert_allclose(predictor.predict_proba(images), expected["probabilities"], atol=2e-6)
    assert len(predictor.predict(images)) == len(images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["format-1", "format-2-whole", "format-3-confidence"])
def test_a_bundle_like_an_old_one_is_a_current_one(name, tmp_path):
    old = finetune.load_bundle(BUNDLES / name)
    save_bundle_like(tmp_path / "new", BUNDLES / name, old.variables, old.confidence)
    new = finetune.load_bundle(tmp_path / "new")
    assert describe(tmp_path / "new")["format"] == FORMAT
    assert (new.classifier, new.class_names, new.image_spec) == (old.classifier, old.class_names, old.image_spec)


def test_a_promise_that_an_old_bundle_was_not_measured_for_is_an_error(tmp_path):
    description = read_description(BUNDLES / "format-3-confidence")
    assert description.confidence.novelty == "energy"
    assert description.confidence.certainties == []


def test_neighbours_that_were_more_than_the_images_are_all_of_them(tmp_path):
    head = {"num_classes": 3, "pool": None, "dropout": 0.0, "headless": False, "type": "knn"}
    bundle = copy_bundle(tmp_path / "old", BUNDLES / "format-4-digest")
    rewrite(bundle, lambda model: model.update(head={**head, "config": {"size": 12, "k": 20, "temperature": 0.07}}))
    assert read_description(bundle).head.config["k"] == 12


def test_a_newer_format_says_upgrade(tmp_path):
    bundle = copy_bundle(tmp_path / "newer")
    rewrite(bundle, lambda model: model.update(format=FORMAT + 1, something="else"))
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}, made by a newer version .*: upgrade"):
        read_description(bundle)


@pytest.mark.parametrize("version", [0, -1, "5", None, 5.0, True])
def test_a_format_is_a_number(version, tmp_path):
    bundle = copy_bundle(tmp_path / "odd")
    rewrite(bundle, lambda model: model.update(format=version))
    with pytest.raises(CheckpointError, match="format: a number from 1 to 5"):
        read_description(bundle)


def test_a_network_that_format_1_did_not_have_is_named(tmp_path):
    bundle = copy_bundle(tmp_path / "odd", BUNDLES / "format-1")
    model = describe(bundle)
    model["backbone"]["family"] = "vit"
    (bundle / "model.json").write_text(json.dumps(model))
    with pytest.raises(CheckpointError, match="format 1 had clip_vision_model alone"):
        read_description(bundle)
