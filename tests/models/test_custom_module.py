import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from paths import ROOT
from PIL import Image

import finetune
from finetune.errors import CheckpointError, ModelError, RecipeError, TransferError
from finetune.images.spec import ImageSpec
from finetune.models.custom_module import CustomModule, load_module
from finetune.models.lenet import LeNet

SPEC = ImageSpec(8, 8, 8, "bilinear", (0.0,), (1.0,))
CODE = '''
import flax.linen as nn
import jax.numpy as jnp


class Net(nn.Module):
    """Dropout, batch statistics, and a collection of its own that counts the training steps."""

    width: int = 12
    classes: int | None = None

    @nn.compact
    def __call__(self, x, training=False):
        x = nn.Dense(self.width, name="dense")(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not training, momentum=0.9, name="norm")(x)
        x = nn.Dropout(0.1, deterministic=not training)(nn.relu(x))
        seen = self.variable("counter", "steps", jnp.zeros, ())
        if training:
            seen.value += 1
        self.sow("losses", "size", jnp.abs(x).sum())
        return x if self.classes is None else nn.Dense(self.classes, name="logits")(x)


class Attribute(nn.Module):
    training: bool = True

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


class NoImages(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x.reshape(7, 7)
'''
RECIPE = """
backbone: {module: "own_models:Net", kwargs: {classes: 10}, image: {size: 8, channels: 1}}
head: {init: none}
data: {source: digits, shots_per_class: 30}
stages:
  - epochs: 6
    batch_size: 50
    partitions: [{match: ".*", learning_rate: 1.0e-2}]
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A folder with a module of one's own, from which the process runs."""
    (tmp_path / "own_models.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "own.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_models", None)


def run(*overrides, **kwargs):
    return finetune.run(finetune.load_recipe("own.yaml", overrides), quiet=True, **kwargs)


@pytest.mark.slow
def test_a_whole_model_of_ones_own_is_trained_saved_and_restored(code):
    result = run(allow_local_code=True)
    assert result.summary["results"][-1]["accuracy"] > 0.8
    predictor = result.predictor()
    assert set(predictor.variables) == {"params", "batch_stats", "counter"}
    assert predictor.variables["counter"]["backbone"]["steps"] == 36
    assert set(predictor.variables["params"]) == {"backbone"}
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = [(image * 15.9).astype(np.uint8) for image in digits.images[:300]]
    found = predictor.predict_proba(pixels).argmax(1)
    assert (found == digits.target[:300]).mean() > 0.8
    again = finetune.restore(result.directory / "model", allow_local_code=True).predict_proba(pixels)
    np.testing.assert_array_equal(again.argmax(1), found)


@pytest.mark.slow
def test_as_a_backbone_it_gets_a_head(code):
    result = run("backbone.kwargs={width: 20}", "head.init=lecun_normal", allow_local_code=True)
    assert result.predictor().variables["params"]["head"]["kernel"].shape == (20, 10)
    assert result.summary["results"][-1]["accuracy"] > 0.8


@pytest.mark.slow
def test_what_is_frozen_of_it_stays_as_it_was_with_all_its_collections(code):
    rules = "[{match: backbone/logits/.*, learning_rate: 0.01}, {match: .*, frozen: true}]"
    result = run(f"stages.0.partitions={rules}", allow_local_code=True)
    variables = result.predictor().variables
    assert result.summary["frozen_unchanged"]
    assert result.summary["frozen"]["statistics"] == 3
    assert variables["counter"]["backbone"]["steps"] == 0
    start = load_module(CustomModule("own_models:Net", {"classes": 10}), SPEC, allow_local_code=True).variables
    for name in ("mean", "var"):
        np.testing.assert_array_equal(
            variables["batch_stats"]["backbone"]["norm"][name], start["batch_stats"]["norm"][name]
        )


def test_code_from_outside_is_not_imported_unless_that_is_allowed(code):
    (code / "own_models.py").write_text("raise SystemExit('this ran')", encoding="utf-8")
    with pytest.raises(ModelError, match="own_models:Net: code from outside this toolkit.*--allow-local-code"):
        run()
    assert "own_models" not in sys.modules


def test_a_bundle_does_not_import_code_unless_that_is_allowed(code):
    directory = run(allow_local_code=True).directory
    sys.modules.pop("own_models")
    with pytest.raises(ModelError, match="runs only with your permission"):
        finetune.restore(directory)
    assert "own_models" not in sys.modules


@pytest.mark.slow
def test_a_model_whose_code_has_changed_is_one_message(code):
    directory = run(allow_local_code=True).directory
    sys.modules.pop("own_models")
    (code / "own_models.py").write_text(CODE.replace("reshape(len(x), -1)", "reshape(len(x), 3)"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="the weights cannot be read"):
        finetune.restore(directory, allow_local_code=True)


@pytest.mark.slow
def test_a_resumed_run_of_a_module_goes_on_from_the_same_initial_values(code):
    result = run(allow_local_code=True, output="whole")
    assert run(allow_local_code=True, output="whole", resume=True).summary == result.summary


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "backbone.module=own_models:Nett",
            "Nett does not exist .did you mean 'Net'.*own_models: Net, Attribute, NoImages",
        ),
        ("backbone.module=own_models:jnp", "jnp is not a Linen module"),
        ("backbone.module=own_modelz:Net", "own_modelz cannot be imported: ModuleNotFoundError"),
        (
            "backbone.kwargs={widht: 3}",
            "cannot be built with these kwargs .did you mean 'width'.*its attributes: width, classes",
        ),
        ("backbone.module=own_models:Attribute", "its 'training' is an attribute"),
        ("backbone.module=own_models:NoImages", r"cannot take images \[1, 8, 8, 1\]"),
        ("backbone.kwargs={classes: 7}", r"has to give \[N, 10\].*gives \[1, 7\]"),
        ("backbone.kwargs.width=wide", r"cannot take images|cannot be made"),
    ],
)
def test_a_module_that_does_not_fit_is_one_message(code, override, words):
    overrides = [override] if "kwargs" in override else [override, "~backbone.kwargs"]
    with pytest.raises(ModelError, match=words):
        run(*overrides, allow_local_code=True)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("backbone.module=own_models", "string should match pattern"),
        ("backbone.kwargs={classes: 2020-01-01}", "backbone.kwargs.classes: input was not a valid JSON value"),
        ("backbone.image.channels=2", "input should be 1 or 3"),
        ("backbone.image.mean=[0.1, 0.2]", "mean: one number, or a list of 1; received 2"),
        ("backbone.imagee={size: 8}", "unknown key 'backbone.imagee' .did you mean 'image'"),
        ("head.dropout=0.5", "init: none, which adds no head"),
        ("stages.0={type: linear_probe}", "head.init: none adds none"),
        ("backbone={source: builtin:tiny-clip}", "a pretrained backbone needs a head"),
    ],
)
def test_a_recipe_that_makes_no_sense_for_a_module_is_refused(code, override, words):
    with pytest.raises(RecipeError, match=words):
        finetune.load_recipe("own.yaml", [override])


def test_its_variables_are_those_of_its_own_initializers():
    backbone = load_module(
        CustomModule("finetune.models.lenet:LeNet", {"norm": True}),
        ImageSpec(28, 28, 28, "bilinear", (0.0,), (1.0,)),
        seed=5,
    )
    expected = LeNet(norm=True).init(jax.random.key(5), jnp.zeros((1, 28, 28, 1)))
    jax.tree.map(np.testing.assert_array_equal, backbone.variables, expected)


@pytest.mark.slow
def test_weights_come_from_an_earlier_run_or_from_what_orbax_saved(code):
    first = run(allow_local_code=True, output="first").predictor().variables
    inner = {name: tree["backbone"] for name, tree in first.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(code / "saved", inner)
    own = CustomModule("own_models:Net", {"classes": 10})
    for folder in ("first", "first/model", "saved"):
        loaded = load_module(own, SPEC, weights=folder, allow_local_code=True)
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, inner)
        assert not loaded.report.fresh
    with pytest.raises(TransferError, match="shape .*dense/kernel"):
        load_module(CustomModule("own_models:Net", {"width": 9}), SPEC, weights="saved", allow_local_code=True)
    for folder, words in (("nowhere", "no such folder"), (".", "neither a run, nor a bundle, nor variables")):
        with pytest.raises(ModelError, match=words):
            load_module(own, SPEC, weights=folder, allow_local_code=True)


@pytest.mark.slow
def test_the_guide_to_modules_works_as_it_is_written(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for language, name in (("python", "my_models.py"), ("yaml", "my.yaml")):
        (code,) = re.findall(rf"```{language}\n# {re.escape(name)}\n(.*?)```", text, re.DOTALL)
        (tmp_path / name).write_text(code, encoding="utf-8")
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            noise = np.random.default_rng(i).integers(-40, 40, (70, 90, 3))
            Image.fromarray((level + noise).astype(np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    recipe = finetune.load_recipe("my.yaml", ["stages.0.epochs=3", "stages.0.batch_size=8"])
    result = finetune.run(recipe, quiet=True, allow_local_code=True)
    sys.modules.pop("my_models")
    assert result.directory == Path("checkpoints/my")
    assert result.summary["results"][-1]["n"] == 8
