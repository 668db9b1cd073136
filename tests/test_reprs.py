"""What public objects show of themselves: a short line, and a table in a notebook; never arrays."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import SMALL

import finetune
from finetune.export.bundle import Bundle
from finetune.export.confidence import Confidence
from finetune.models.layers.base import BackboneOutput
from finetune.recipe import Partition

RULES = [Partition(match="head", learning_rate=1e-3), Partition(match=".*", frozen=True)]


@pytest.fixture(scope="module")
def objects(tiny_clip):
    names = ('<script>alert("x")</script>', *(f"class {i}" for i in range(2000)))
    classifier, variables = finetune.build_classifier(tiny_clip, len(names))
    bundle = Bundle(classifier, variables, names, tiny_clip.image_spec)
    state = finetune.TrainState.create(variables["params"]["head"], {}, optax.adam(1e-3), jax.random.key(0))
    shares = {name: 0.5 if name == names[0] else 0.0 for name in names}
    return {
        "Recipe": finetune.load_recipe(SMALL),
        "Backbone": tiny_clip,
        "Clip": tiny_clip.text,
        "TransferReport": tiny_clip.report,
        "Bundle": bundle,
        "Predictor": finetune.Predictor(bundle),
        "Prediction": finetune.Prediction(names[0], 0, shares, names[:1], unknown=False),
        "TrainState": state,
        "ParameterPlan": finetune.ParameterPlan.make(variables, RULES),
        "BackboneOutput": BackboneOutput(jnp.zeros((2, 17, 192)), jnp.zeros((2, 192))),
    }


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Recipe", "name='small', backbone='builtin:tiny-clip', data='digits', stages=('probe (linear_probe)', "),
        ("Backbone", "family='clip', layout='transformers', parameters=1"),
        ("Clip", "module='CLIPModule', parameters="),
        ("TransferReport", "transferred=110, fresh=0, unused=0"),
        ("Bundle", "classes=2001, class_names=("),
        ("Predictor", "classes=2001, class_names=("),
        ("Prediction", "confidence=0.5, unknown=False)"),
        ("TrainState", "parameters=386193, optimizer_values=772387, averaged=False"),
        ("ParameterPlan", "partitions=('head: 2 leaves', 'frozen: "),
        ("BackboneOutput", "last_hidden_state='float32[2, 17, 192]', pooler_output='float32[2, 192]'"),
    ],
)
def test_an_object_is_one_short_line(objects, name, told):
    line = repr(objects[name])
    assert line.startswith(f"{name}(")
    assert told in line
    assert len(line) < 500
    assert "\n" not in line
    assert "array(" not in line.lower()


@pytest.mark.parametrize("name", ["Recipe", "Backbone", "Clip", "Predictor", "Prediction", "TrainState"])
def test_an_object_is_a_small_table_in_a_notebook(objects, name):
    table = objects[name]._repr_html_()
    assert f"<strong>{name}</strong>" in table
    assert table.count("<tr>") == table.count("</tr>") > 2
    assert len(table) < 8000
    assert "<script" not in table
    assert "array(" not in table.lower()
    assert not re.search(r'style="[^"]*(color|background)', table)


def test_what_a_model_learned_of_its_confidence_is_no_list_of_numbers(objects):
    confidence = Confidence(np.ones(1), np.zeros(1), {"lac": np.arange(50)}, np.arange(50))
    assert repr(confidence) == "Confidence(validation_images=50, calibration='temperature', unknown='energy')"
    assert "array" not in repr(confidence.novelty)


def test_a_recipe_shows_all_of_it_in_a_notebook_but_for_secrets():
    recipe = finetune.load_recipe(SMALL, ["save.mirror=s3://key:secret@bucket/runs", "data.source=<b>"])
    table = recipe._repr_html_()
    assert "learning_rate: 0.001" in table
    assert "s3://...@bucket/runs" in table
    assert "secret" not in table
    assert "<b>" not in table


def test_a_state_shows_itself_while_it_is_traced(objects):
    shown = []
    jax.eval_shape(lambda state: shown.append(repr(state)), objects["TrainState"])
    assert shown == [repr(objects["TrainState"])]
