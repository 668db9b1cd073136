"""The JSON Schema of a recipe agrees with what is loaded."""

import copy

import jsonschema
import pytest
from rich_recipes import rich_recipes
from ruamel.yaml import YAML

from finetune import resources
from finetune.errors import RecipeError
from finetune.recipe import Recipe, load_recipe
from finetune.recipe.schema import recipe_schema
from finetune.recipe.source import dump_recipe

RICH = rich_recipes()
SCHEMA = recipe_schema()


def errors(document):
    return list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(document))


def read(text):
    return YAML(typ="safe", pure=True).load(text)


def test_it_is_a_schema_of_draft_2020_12():
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", resources.recipes())
def test_every_bundled_recipe_is_valid_as_written_and_as_saved(name):
    written = read(resources.recipes()[name].read_text(encoding="utf-8"))
    assert "name" not in written  # the file's name serves
    assert errors(written) == []
    assert errors(read(dump_recipe(load_recipe(name)))) == []


@pytest.mark.parametrize("name", RICH)
def test_every_part_and_its_short_form_is_valid(name):
    assert errors(RICH[name]) == []


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("sed",), 1),
        (("seed",), "1"),
        (("seed",), -1),
        (("backbone", "revison"), "main"),
        (("head", "init"), "ones"),
        (("stages", 0, "epoch"), 1),
        (("stages", 0, "type"), "linear_prob"),
        (("stages", 0, "loss"), "hinge"),
        (("stages", 0, "augment"), {"random_resized_crop": False}),
        (("stages", 0, "augment"), {"auto_augment": "autoaugment"}),
        (("stages", 0, "partitions"), []),
        (("stages", 0, "partitions", 0, "optimizer"), "adamz"),
        (("stages", 0, "partitions", 0, "optimizer"), {"trust": 0.1}),
        (("stages", 0, "partitions", 0, "optimizer"), {"name": "sgd", "b1": 0.9}),
        (("stages", 0, "partitions", 0, "schedule"), "step"),
        (("stages", 0, "partitions", 0, "schedule"), {"name": "cosine", "warmup": 1.5}),
        (("stages", 0, "partitions", 0, "schedule"), {"name": "cosine", "warmup": {"step": 1}}),
        (("stages", 0, "partitions", 0, "lr"), 0.1),
    ],
)
def test_a_mistake_is_one_for_the_schema_and_for_the_recipe(tmp_path, keys, value):
    document = copy.deepcopy(RICH["shots"])
    node = document
    for key in keys[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
    node[keys[-1]] = value
    assert errors(document)
    with pytest.raises(RecipeError):
        load_document(document, tmp_path)


def load_document(document, folder):
    with (folder / "a.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(document, file)
    return load_recipe(folder / "a.yaml")


def test_every_option_is_documented():
    definitions = {title: part for title, part in SCHEMA["$defs"].items() if "properties" in part}
    parts = {"Recipe": SCHEMA, **definitions}
    assert len(parts) > 30
    assert all(part["description"] for part in parts.values())
    without = [
        f"{title}.{name}"
        for title, part in parts.items()
        for name, option in part["properties"].items()
        if "description" not in option and "const" not in option
    ]
    assert without == []


def test_every_option_of_the_recipe_is_in_the_schema():
    assert set(SCHEMA["properties"]) == set(Recipe.model_fields)
    assert SCHEMA["required"] == ["backbone", "data", "stages"]
