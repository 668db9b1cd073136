"""Nothing of a bundle is believed: not its description, not its files, not how they belong together."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from bundles import BUNDLES, CURRENT, copy_bundle, describe, rewrite

import finetune
from finetune.errors import CheckpointError, FinetuneError, ModelError
from finetune.export.bundle import read_description, save_bundle_like


@pytest.fixture
def bundle(tmp_path):
    return copy_bundle(tmp_path / "bundle")


def put(path, value):
    """A change of a description: the value at a dotted path."""

    def change(model):
        *above, last = path.split(".")
        for key in above:
            model = model[int(key)] if isinstance(model, list) else model[key]
        model[int(last) if isinstance(model, list) else last] = value

    return change


REFUSED = [
    ("class_names", ["cat", "owl"], "class_names: the head gives 3 numbers, and there are 2 names"),
    ("class_names", ["cat", "cat", "owl"], "class_names: 'cat' is there twice"),
    ("class_names", ["cat", " ", "owl"], "class_names.1: a class has a name that is not empty; received ' '"),
    ("class_names", ["cat", 3, "owl"], "class_names.1: a class has a name"),
    ("class_names", "cat", "class_names: should be a valid list"),
    ("head.num_classes", 4, "class_names: the head gives 4 numbers, and there are 3 names"),
    ("head.num_classes", True, "head.num_classes: should be a valid integer"),
    ("head.num_classes", 0, "head.num_classes: should be greater than or equal to 1; received 0"),
    ("head.dropout", 1.5, "head.dropout: should be less than 1"),
    ("head.pool", "max", "head.pool: should be 'pooler', 'cls' or 'mean'; received 'max'"),
    ("head.type", "knn", "head: type and config stand together"),
    ("head.headles", True, "head.headles: unknown key .did you mean 'headless'"),
    ("multi_label", 1, "multi_label: should be a valid boolean"),
    ("multi_label", True, "confidence: thresholds: there where an image may be of several"),
    ("confidance", None, "confidance: unknown key .did you mean 'confidence'"),
    ("image_spec.height", 0, "image_spec: size: needs edges of 1 to 4,096 pixels"),
    ("image_spec.width", 8.0, "image_spec: size: needs edges"),
    ("image_spec.width", 10**9, "image_spec: size: needs edges"),
    ("image_spec.resize", [8, 8, 8], "image_spec: resize: "),
    ("image_spec.resize", [-8, 8], "image_spec: resize: needs edges"),
    ("image_spec.interpolation", "cubic", "image_spec: interpolation: choose nearest, bilinear, bicubic"),
    ("image_spec.rounding", "up", "image_spec: rounding: choose floor, even"),
    ("image_spec.std", [0.5, 0.0, 0.5], "image_spec: std: needs numbers from 0.0001"),
    ("image_spec.std", [0.5, 0.5], "image_spec: std: needs a number for each of 3 channels"),
    ("image_spec.mean", [0.5, "0", 0.5], "image_spec: mean: needs numbers"),
    ("image_spec.mean", [0.5, 1e30, 0.5], "image_spec: mean: needs numbers"),
    ("image_spec.crop", 8, "image_spec: crop: unknown key"),
    ("image_spec", [], "image_spec: a mapping of height, width"),
    ("confidence.scale", [1.0, 2.0], "confidence: scale of 2 and bias of 3 numbers for 3 classes"),
    ("confidence.scale", [1.0, 0.0, 1.0], "confidence.scale.1: should be greater than 0"),
    ("confidence.scale", [1.0, 1e300, 1.0], "confidence.scale.1: should be less than or equal to 1000"),
    ("confidence.bias", [0.0, "0", 0.0], "confidence.bias.1: should be a valid number"),
    ("confidence.novelty", "gradient", "confidence.novelty: should be 'energy', 'knn' or 'mahalanobis'"),
    ("confidence.novelties", [], "confidence.novelties: should have at least 1 item"),
    ("confidence.novelties", [0.1, 0.2], "confidence: certainties and right: one of each for the 2 novelties"),
    ("confidence.scores.lac", [0.5, 0.1] + [0.6] * 18, "confidence: lac: 20 numbers in ascending order"),
    ("confidence.scores.lac", [0.5], "confidence: lac: 20 numbers"),
    ("confidence.scores", {}, "confidence: scores: of lac, aps, raps"),
    ("confidence.certainties.0", 1.5, "confidence.certainties.0: should be less than or equal to 1"),
    ("confidence.right.0", 1, "confidence.right.0: should be a valid boolean"),
    ("confidence.thresholds", [0.5], "confidence: thresholds: one for each of 3 classes"),
    ("weights_sha256", "0", "weights_sha256: should match pattern"),
    ("backbone.config", {"a": [[[[[[[[[[1]]]]]]]]]]}, "backbone.config: too many levels"),
    ("backbone.config.layer_norm_eps", 1e308, "backbone.config: numbers are finite"),
    ("backbone.weights", "here", "backbone.weights: unknown key"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_a_description_out_of_range_is_refused_even_with_a_digest_that_fits(bundle, path, value, message):
    rewrite(bundle, put(path, value))
    with pytest.raises(CheckpointError, match=rf"model.json: not a model description: {message}"):
        read_description(bundle)


@pytest.mark.parametrize("key", sorted(describe(CURRENT).keys() - {"format"}))
def test_no_part_of_a_description_may_be_missing(bundle, key):
    rewrite(bundle, lambda model: model.pop(key))
    with pytest.raises(CheckpointError, match=f"not a model description: {key}: missing"):
        read_description(bundle)


HEADS = [
    ("knn", {"size": 4, "k": 5, "temperature": 0.1}, "head: config: k: of 4 images, at most so many vote; received 5"),
    ("knn", {"size": 4, "k": 2, "temperature": 0.0}, "head: config.temperature: should be greater than"),
    ("knn", {"size": 4, "k": 2, "temperature": 0.1, "rows": 4}, "head: config.rows: unknown key"),
    ("tip_adapter", {"size": 1 << 40, "embedding": 8}, "head: config.size: should be less than"),
    ("tip_adapter", {"size": 4}, "head: config.embedding: missing"),
    ("prototype", {"size": 4}, "head.type: should be 'knn' or 'tip_adapter'"),
]


@pytest.mark.parametrize(("kind", "config", "message"), HEADS)
def test_a_head_out_of_range_is_refused(bundle, kind, config, message):
    rewrite(bundle, lambda model: model["head"].update(type=kind, config=config))
    with pytest.raises(CheckpointError, match=message):
        read_description(bundle)


NETWORKS = [
    ("backbone.config.num_hidden_layers", 3000, "num_hidden_layers: 3000, which 26 saved arrays do not bear out"),
    ("backbone.config.num_hidden_layers", 10**12, "num_hidden_layers: 1000000000000, which"),
    ("backbone.config.num_hidden_layers", 2, "the network has params/backbone/encoder/layers/1/"),
    ("backbone.config.num_hidden_layers", 0, "the weights cannot be read into the network that model.json describes"),
    ("backbone.config.hidden_size", 16, "in the network and"),
    ("backbone.config.hidden_size", 1 << 40, "do not bear out"),
    ("backbone.config.num_attention_heads", 0, "dinov2: not a configuration"),
    ("backbone.config.num_attention_heads", -2, "num_attention_heads: -2, which"),
    ("backbone.config.image_size", 4, r"position_embedding/embedding has the shape \[2, 8\]"),
    ("backbone.config.hidden_act", "swash", "unknown activation 'swash'"),
    ("backbone.config.hidden_act", 3, "dinov2: hidden_act: Input should be a valid string; received 3"),
    ("backbone.config.pooling", "max", "dinov2: pooling: Input should be 'class'"),
    ("backbone.config.depth", 3, "dinov2: unknown key 'depth'"),
    ("backbone.family", "dino", "unknown model family 'dino' .did you mean 'dinov"),
    ("backbone.family", "module", "module: unknown key"),
    ("image_spec.height", 4096, "the weights cannot be read into the network"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "value", "message"), NETWORKS)
def test_a_network_that_the_weights_do_not_bear_out_is_refused(bundle, path, value, message):
    rewrite(bundle, put(path, value))
    with pytest.raises((CheckpointError, ModelError), match=message):
        finetune.load_bundle(bundle)


def test_code_from_outside_is_not_imported_because_a_bundle_names_it(bundle):
    rewrite(bundle, put("backbone", {"family": "module", "config": {"module": "os:system", "kwargs": {}}}))
    with pytest.raises(ModelError, match=r"model.json: os:system: code from outside this toolkit"):
        finetune.load_bundle(bundle)


TEXTS = {
    "[1]": "needs a JSON object",
    "{": "cannot be read as JSON",
    '{"format": 5, "format": 4}': "the key 'format' stands twice",
    '{"format": NaN}': "NaN is not a finite number",
    '{"format": ' + "[" * 100 + "]" * 100 + "}": "nested deeper than",
    '{"format": ' + "[" * 100_000 + "]" * 100_000 + "}": "nested deeper than",
    "[" * 600_000: "more than 500,000 lists",
    '{"format": ' + "9" * 5000 + "}": "a whole number of 5,000 digits",
    '{"format": "\ud800"}': "",
    "\x00": "cannot be read as JSON",
    "": "cannot be read as JSON",
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20].encode("ascii", "backslashreplace").decode())
def test_what_is_no_json_of_a_description_is_one_message(bundle, text):
    (bundle / "model.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(CheckpointError, match=f"model.json: .*{TEXTS[text]}"):
        read_description(bundle)


@pytest.mark.slow
def test_a_huge_file_is_not_read(bundle):
    os.truncate(bundle / "model.json", 1 << 40)
    with pytest.raises(CheckpointError, match="more than 64 MB"):
        read_description(bundle)


@pytest.mark.parametrize("name", ["model.json", "novelty.safetensors"])
def test_links_to_files_are_read_as_in_a_hubs_cache_and_pipes_are_not_opened(bundle, name):
    (bundle / name).rename(bundle.parent / "elsewhere")
    (bundle / name).symlink_to(bundle.parent / "elsewhere")
    finetune.load_bundle(bundle)
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        finetune.load_bundle(bundle)


def test_a_pipe_among_the_weights_is_not_opened(bundle):
    os.mkfifo(bundle / "weights" / "d" / "pipe")
    with pytest.raises(CheckpointError, match="pipe: neither a file nor a folder"):
        finetune.load_bundle(bundle)


def test_a_description_without_its_digest_is_not_taken_for_an_older_one(bundle):
    model = describe(bundle)
    (bundle / "model.json").write_text(json.dumps(model))
    with pytest.raises(CheckpointError, match="model.json: changed since it was written"):
        read_description(bundle)


def test_a_bundle_of_other_class_names_than_outputs_is_not_written(tmp_path):
    like = copy_bundle(tmp_path / "like")
    rewrite(like, put("class_names", ["cat", "owl"]))
    with pytest.raises(CheckpointError, match="the head gives 3 numbers, and there are 2 names"):
        save_bundle_like(tmp_path / "new", like, {"params": {}})
    assert not (tmp_path / "new").exists()


def test_names_that_are_no_utf8_are_names(bundle):
    rewrite(bundle, put("class_names", ["caf\udce9", "a", "b"]))
    assert read_description(bundle).class_names[0] == "caf\udce9"


@pytest.mark.slow
def test_a_description_needs_no_jax():
    code = "import sys, finetune.export.description, finetune.export.formats; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_files_that_nothing_reads_are_let_be(bundle):
    (bundle / "README.md").write_text("a card")
    os.mkfifo(bundle / "pipe")
    assert finetune.load_bundle(bundle).class_names == ("cat", "été", "owl")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["weights", "novelty.safetensors"])
def test_parts_of_two_bundles_do_not_go_together(tmp_path, part):
    """Of the same network, with the same names of arrays and the same shapes."""
    one, other = copy_bundle(tmp_path / "one"), copy_bundle(tmp_path / "other")
    (other / "expected.json").unlink(missing_ok=True)  # the test's own
    loaded = finetune.load_bundle(other)
    loaded.variables["params"]["head"]["bias"] = loaded.variables["params"]["head"]["bias"] + 1
    loaded.confidence.novelty.arrays["bank"][:] = np.eye(12, 8)
    save_bundle_like(other, CURRENT, loaded.variables, loaded.confidence)
    finetune.load_bundle(other)
    if (one / part).is_dir():
        shutil.rmtree(one / part)
        shutil.copytree(other / part, one / part)
    else:
        shutil.copyfile(other / part, one / part)
    with pytest.raises(CheckpointError, match="not (those|what) .*model.json was written with"):
        finetune.load_bundle(one)


@pytest.mark.slow
def test_novelty_of_other_features_than_the_head_reads_is_refused(tmp_path):
    loaded = finetune.load_bundle(CURRENT)
    bank = loaded.confidence.novelty.arrays
    for array, message in (
        (np.ones((4, 9), np.float32), "for 9 features, and the head reads 8"),
        (np.full((4, 8), np.nan, np.float32), "not of finite float32 numbers"),
    ):
        bank["bank"] = array
        save_bundle_like(tmp_path / "new", CURRENT, loaded.variables, loaded.confidence)
        with pytest.raises(CheckpointError, match=message):
            finetune.load_bundle(tmp_path / "new")


@pytest.mark.slow
def test_answers_that_an_old_bundle_cannot_promise_are_refused():
    predictor = finetune.restore(BUNDLES / "format-3-confidence")
    images = np.zeros((1, 9, 9, 3), np.uint8)
    assert predictor.predict(images, coverage=0.9)[0].set
    with pytest.raises(FinetuneError, match="max_error: an earlier version saved the model"):
        predictor.predict(images, max_error=0.1)
