"""Recipes as text: saved ones, and what a header says."""

import pytest
from rich_recipes import rich_recipes
from ruamel.yaml import YAML

from finetune import resources
from finetune.errors import RecipeError
from finetune.recipe import Recipe, load_recipe
from finetune.recipe.source import dump_recipe, purpose

RICH = rich_recipes()


def reload(recipe, folder):
    file = folder / "saved.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    return load_recipe(file)


@pytest.mark.parametrize("name", [*resources.recipes(), *RICH])
def test_a_saved_recipe_loads_again_equal_and_is_saved_as_the_same_text(tmp_path, name):
    recipe = Recipe.model_validate(RICH[name]) if name in RICH else load_recipe(name)
    again = reload(recipe, tmp_path)
    assert dump_recipe(again).replace(f"{tmp_path}/", "") == dump_recipe(recipe)  # paths are relative to the file
    assert reload(again, tmp_path) == again
    assert reload(again, tmp_path).model_dump() == again.model_dump()


def test_a_saved_recipe_holds_every_value_that_has_an_effect_defaults_too():
    recipe = Recipe.model_validate(
        {
            "name": "short",
            "backbone": {"source": "builtin:tiny-clip"},
            "data": {"source": "images"},
            "stages": [
                {"epochs": 1, "partitions": [{"match": "backbone", "learning_rate": 1e-3, "schedule": "cosine"}]}
            ],
        }
    )
    saved = YAML(typ="safe").load(dump_recipe(recipe))
    assert list(saved) == ["name", "seed", "backbone", "head", "data", "stages", "evaluate", "save", "mesh", "trackers"]
    assert (saved["seed"], saved["data"]["validation"], saved["evaluate"]["batch_size"]) == (0, 0.1, 256)
    (partition,) = saved["stages"][0]["partitions"]
    assert partition["optimizer"] == {"name": "adamw", "b1": 0.9, "b2": 0.999, "eps": 1e-8}
    assert partition["schedule"] == {"name": "cosine", "warmup": {"steps": 0}, "end_factor": 0.0}
    assert saved["stages"][0]["loss"] == {"name": "cross_entropy", "class_weights": None, "label_smoothing": 0.0}


def test_a_saved_recipe_leaves_out_what_has_no_effect():
    saved = YAML(typ="safe").load(dump_recipe(Recipe.model_validate(RICH["everything"])))
    assert saved["stages"][2]["partitions"][-1] == {"match": ".*", "frozen": True, "batch_norm": None}
    assert "steps" not in saved["stages"][2]
    assert "l2_sp" not in saved["stages"][2]["partitions"][1]
    saved = YAML(typ="safe").load(dump_recipe(load_recipe("lora")))
    assert "validation" not in saved["data"]
    assert load_recipe("lora").data.validation == 0.1


def test_a_saved_recipe_can_be_changed_by_overrides(tmp_path):
    file = tmp_path / "saved.yaml"
    file.write_text(dump_recipe(load_recipe("lora")), encoding="utf-8")
    changed = load_recipe(file, ["data.shots_per_class=null", "stages.0.partitions.2.batch_norm=frozen"])
    assert changed.data.validation == 0.1
    with pytest.raises(RecipeError, match="has no effect on a frozen partition"):
        load_recipe(file, ["stages.0.partitions.0.frozen=true"])


def test_purpose_joins_the_lines_of_the_header_up_to_the_next_key(tmp_path):
    (tmp_path / "a.yaml").write_text("# Purpose: first words\n#          and more.\n# Command: run\nseed: 0\n")
    assert purpose(tmp_path / "a.yaml") == "first words and more."
