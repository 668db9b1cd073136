import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDENS
from PIL import Image

import finetune
from finetune.errors import ModelError, RecipeError
from finetune.models.pretrained_head import PretrainedHead

NAMES = ("tench, Tinca tinca", "great_white_shark", "Hen")


def a_head(names=NAMES):
    return PretrainedHead(jnp.arange(6.0).reshape(2, 3), jnp.arange(3.0), names)


def test_classes_are_matched_by_name_in_the_datas_order():
    kernel, bias = a_head().select(["hen", "Tench"])
    np.testing.assert_array_equal(kernel, [[2, 0], [5, 3]])
    np.testing.assert_array_equal(bias, [2, 0])
    assert a_head().select(["great white shark"])[0].shape == (2, 1)


def test_a_class_that_the_head_does_not_know_is_named():
    with pytest.raises(ModelError, match="does not know rooster; it knows tench, Tinca tinca, great_white_shark, Hen"):
        a_head().select(["hen", "rooster"])


@pytest.mark.parametrize("names", [(), ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_a_head_without_names_is_taken_class_by_class(names):
    np.testing.assert_array_equal(a_head(names).select(["x", "y", "z"])[1], [0, 1, 2])
    with pytest.raises(ModelError, match="3 classes without names, and the data has 2"):
        a_head(names).select(["x", "y"])


@pytest.mark.parametrize("golden", ["vit", "deit", "timm-deit-distilled", "dinov2-swiglu", "clip-vision-interpolated"])
def test_a_checkpoint_without_one_linear_head_on_its_features_has_none(golden):
    assert finetune.load_backbone(GOLDENS / golden).head is None


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        file = tmp_path / "images" / f"class {i % 5}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    return tmp_path / "images"


def a_recipe(images, backbone, *stages, init="pretrained"):
    document = {"name": "own", "backbone": {"source": str(backbone)}, "head": {"init": init}}
    data = {"source": str(images), "validation": 0, "test": 0.5}
    return finetune.Recipe.model_validate({**document, "data": data, "stages": list(stages)})


@pytest.mark.slow
def test_a_classifier_from_elsewhere_is_measured_and_served(images, tmp_path):
    source = GOLDENS / "timm-resnet-classifier"
    measured = finetune.run(a_recipe(images, source), output=tmp_path / "measured", quiet=True)
    (result,) = measured.summary["results"]
    assert (result["name"], result["n"]) == ("pretrained", 20)
    predictor = measured.predictor()
    assert predictor.class_names == tuple(f"class {i}" for i in range(5))
    expected = np.load(source / "expected.npz")
    logits = predictor.model.apply(predictor.variables, expected["pixel_values"])
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)


@pytest.mark.slow
def test_a_classifier_from_elsewhere_is_continued(images, tmp_path):
    source = GOLDENS / "timm-resnet-classifier"
    stage = {"steps": 2, "batch_size": 8, "partitions": [{"match": ".*", "learning_rate": 1e-3}]}
    continued = finetune.run(a_recipe(images, source, stage), output=tmp_path / "continued", quiet=True)
    assert [r["name"] for r in continued.summary["results"]] == ["pretrained", "finetune"]


def test_what_cannot_be_kept_is_said_before_anything_is_written(images, tmp_path):
    with pytest.raises(RecipeError, match="has no linear classifier on its pooled features"):
        finetune.run(a_recipe(images, GOLDENS / "vit"), output=tmp_path / "run", quiet=True)
    folder = tmp_path / "resnet"
    shutil.copytree(GOLDENS / "timm-resnet-classifier", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "label_names": list("abcde")}))
    with pytest.raises(ModelError, match="does not know class 0, class 1.*it knows a, b, c, d, e"):
        finetune.run(a_recipe(images, folder), output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_stages_needs_a_head_that_classifies(images):
    with pytest.raises(ValueError, match="a recipe needs a stage, unless its head classifies from the start"):
        a_recipe(images, GOLDENS / "vit", init="zeros")


def test_a_name_that_several_classes_have_is_refused_only_where_it_is_asked_for():
    head = a_head(("crane", "crane", "maillot, tank suit"))
    np.testing.assert_array_equal(head.select(["maillot"])[1], [2])
    with pytest.raises(ModelError, match=r"several classes called 'crane' \(its outputs 0 and 1\)"):
        head.select(["maillot", "crane", "Crane "])


def test_all_of_a_name_comes_before_its_first_part():
    head = a_head(("maillot", "maillot, tank suit", "hen"))
    np.testing.assert_array_equal(head.select(["Maillot", "maillot,_tank_suit"])[1], [0, 1])
    with pytest.raises(ModelError, match="several classes called 'maillot, bathing suit'"):
        head.select(["maillot, bathing suit"])


@pytest.fixture
def named(tmp_path):
    """The head of a classifier with 5 outputs whose configuration names its classes in another way."""

    def read(**names):
        folder = shutil.copytree(GOLDENS / "vit-classifier", tmp_path, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        del config["id2label"], config["label2id"]
        (folder / "config.json").write_text(json.dumps(config | names))
        return finetune.load_backbone(folder).head

    return read


@pytest.mark.parametrize(
    "names",
    [
        {"id2label": {f"0{i}": name for i, name in enumerate("abcde")}},
        {"id2label": {str(i): name for i, name in reversed(list(enumerate("abcde")))}},
        {"label2id": {name: i for i, name in enumerate("abcde")}},
        {"label2id": {name: str(i) for i, name in enumerate("abcde")}},
    ],
)
def test_names_are_those_of_the_outputs_numbers(named, names):
    head = named(**names)
    assert head.class_names == tuple("abcde")
    np.testing.assert_array_equal(head.select(["c", "a"])[1], head.bias[jnp.array([2, 0])])


@pytest.mark.parametrize(
    ("names", "received"),
    [
        ({"id2label": {str(i + 1): name for i, name in enumerate("abcde")}}, "id2label {'1': 'a'"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}, "id2label {'0': 'a'.* and label2id {'a': 0"),
        ({"id2label": {"1": "a"}, "label2id": {f"LABEL_{i}": i for i in range(5)}}, "id2label {'1': 'a'}: correct"),
        ({"label2id": {"a": "first"}}, "label2id {'a': 'first'}"),
        ({"label_names": list("ab")}, r"label_names \['a', 'b'\]"),
    ],
)
def test_names_that_are_not_one_for_each_output_are_said_and_not_left_out(named, names, received):
    head = named(**names)
    assert head.class_names == ()
    with pytest.raises(ModelError, match=f"has 5 classes, and its files do not name each of them.*received {received}"):
        head.select(list("abcde"))


@pytest.mark.parametrize("count", [2, 5])
def test_placeholders_are_no_names(named, count):
    head = named(id2label={str(i): f"LABEL_{i}" for i in range(count)})
    np.testing.assert_array_equal(head.select(list("vwxyz"))[1], head.bias)
