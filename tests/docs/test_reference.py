"""What the site says of the code is all of it."""

import inspect
import re

import pytest
from reference import api, command_line, errors, recipe
from typer.main import get_command

import finetune
from finetune.cli.main import app
from finetune.recipe.base import Part
from finetune.recipe.schema import recipe_schema


def recipe_parts(part=Part):
    """Every class that a recipe is made of."""
    for child in part.__subclasses__():
        yield child
        yield from recipe_parts(child)


def test_every_key_of_a_recipe_has_a_meaning_in_its_docstring():
    without = [
        f"{part['title']}.{key}"
        for _, part in recipe.parts()
        for key, value in part["properties"].items()
        if "const" not in value and not value.get("description")
    ]
    assert not without, "document them under Attributes: in the docstring of the class"


def test_every_key_of_a_recipe_is_in_its_table():
    sections = dict(re.findall(r"^#+ [^\n]+ \{#(\w+)\}$(.*?)(?=^#|\Z)", recipe.reference(), re.MULTILINE | re.DOTALL))
    parts = {part["title"]: part for _, part in recipe.parts()}
    named = {name for name, part in recipe_schema()["$defs"].items() if "properties" in part}
    assert parts.keys() == named | {"Recipe"}
    classes = {part.__name__: part for part in recipe_parts()}
    count = 0
    for title, part in parts.items():
        assert part["properties"].keys() == classes[title].model_fields.keys()
        told = recipe._told_by(part)
        for key, value in part["properties"].items():
            if told is None or key != told[0]:
                row = re.search(rf"^\| `{key}` \|(.*)\|$", sections[title], re.MULTILINE)
                assert row, f"{title}.{key}"
                kind, default, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", row[1]))
                assert kind
                assert len(meaning) > 3
                assert (default == "required") == (key in part.get("required", ()))
                assert value["description"].startswith(meaning.replace("\\|", "|"))
                count += 1
    assert count > 140


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("batch_size", "| `batch_size` | integer at least 1 | `64` | images of one optimizer step |"),
        ("hflip", "| `hflip` | number at least 0, at most 1 | `0` | probability of a horizontal flip |"),
        ("area", "| `area` | list of 2 numbers | `[0.02, 0.3333]` | least and greatest share of the image |"),
        ("stages", "list of [`train`](#TrainStage), [`linear_probe`](#LinearProbeStage), [`knn`](#KnnStage)"),
        ("loss", "[`cross_entropy`](#CrossEntropy), [`focal`](#Focal) or [`binary_cross_entropy`]"),
    ],
)
def test_a_key_has_its_type_and_default(key, row):
    assert row in next(
        line for line in recipe.reference().splitlines() if line.startswith(f"| `{key}` |") and row in line
    )


def test_every_public_name_is_documented():
    entries = re.findall(r"^::: (\S+)\.(\w+)$", api.reference(), re.MULTILINE)
    names = [name for _, name in entries]
    assert sorted(names) == sorted(set(finetune.__all__) - {"__version__"})
    assert not {name for group in api.GROUPS.values() for name in group} - set(names), "a name that is not public"
    for module, name in entries:
        value = getattr(finetune, name)
        assert value.__module__ == module
        assert len(inspect.getdoc(value) or "") > 20, f"{name} has no docstring"


def test_every_verb_is_documented_with_its_options():
    text = command_line.reference()
    sections = dict(re.findall(r"^### (\S+) \{#\1\}$(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL))
    verbs = get_command(app).commands
    assert sections.keys() == verbs.keys()
    for name, verb in verbs.items():
        assert verb.help
        for param in verb.params:
            for option in param.opts:
                if option.startswith("-") and option not in ("-h", "--help"):
                    assert re.search(rf"{option}\b", sections[name]), f"{name} {option}"


def test_the_table_of_errors_is_one_line_for_each():
    entries = [entry for group in errors.entries().values() for entry in group]
    lines = errors.reference().splitlines()
    assert len(entries) > 40
    for entry in entries:
        assert entry.keys() == {"message", "cause", "do", "command"}
        assert len([line for line in lines if f"| `{entry['message']}` |" in line]) == 1


def test_dots_in_the_table_stand_for_anything_on_the_way():
    assert errors.fits("unknown key '...'; valid here: ...", "error: x.yaml:3: unknown key 'lr'; valid here: a, b")
    assert not errors.fits("unknown key '...'; valid here: ...", "error: unknown key 'lr' (did you mean 'l2'?)")
