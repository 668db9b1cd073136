import json

import pytest
from command_line import clean_failure, finetune

from finetune.resources import recipes


def test_every_bundled_recipe_is_valid():
    result = finetune("validate", *recipes(), columns=200)
    assert result.returncode == 0, result.stderr
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == list(recipes())


def test_partitions_are_held_against_the_parameters_without_data_or_weights(tmp_path):
    absent = "data.source=/nowhere"
    assert finetune("validate", "lora", absent).returncode == 0
    result = finetune("validate", "quickstart", absent, "stages.1.partitions.1.match=bckbone")
    clean_failure(result, "71 parameters match no rule", "bckbone")


def test_a_model_that_is_not_here_is_said_and_the_rest_is_checked():
    result = finetune("validate", "quickstart", "backbone.source=facebook/dinov2-small", columns=200)
    assert result.returncode == 0
    assert "facebook/dinov2-small is not on this disk: partitions are not checked" in result.stdout


def test_all_recipes_that_are_wrong_are_named(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("sede: 1\n")
    result = finetune("validate", "one.yaml", "quickstart", "two.yaml", cwd=tmp_path)
    clean_failure(result, "one.yaml:1", "two.yaml:1", "did you mean 'seed'?")
    assert "quickstart: valid" in result.stdout
    report = json.loads(finetune("validate", "one.yaml", "quickstart", "--json", cwd=tmp_path).stdout)
    assert [recipe["name"] for recipe in report["valid"]] == ["quickstart"]
    assert len(report["problems"]) == 1


@pytest.mark.parametrize("warmup", ["{epochs: 11}", "{steps: 20000}"])
def test_a_schedule_that_does_not_fit_its_stage_is_an_error(warmup):
    clean_failure(finetune("validate", "quickstart", f"stages.1.partitions.0.schedule.warmup={warmup}"), "warm-up")
