from command_line import clean_failure, finetune

from finetune.recipe import load_recipe
from finetune.resources import recipes


def test_cat_prints_a_recipe_as_it_is_written():
    assert finetune("cat", "quickstart").stdout == recipes()["quickstart"].read_text(encoding="utf-8")


def test_cat_with_overrides_prints_a_recipe_that_says_the_same(tmp_path):
    (tmp_path / "mine.yaml").write_text(finetune("cat", "quickstart", "stages.1.epochs=3").stdout)
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe("quickstart", ["stages.1.epochs=3"])


def test_cp_keeps_the_comments_and_replaces_nothing_unasked(tmp_path):
    result = finetune("cp", "quickstart", "mine.yaml", cwd=tmp_path)
    assert "finetune validate mine.yaml" in result.stdout
    assert (tmp_path / "mine.yaml").read_text() == recipes()["quickstart"].read_text()
    clean_failure(finetune("cp", "lora", "mine.yaml", cwd=tmp_path), "mine.yaml: is there already", "--overwrite")
    assert finetune("cp", "lora", "mine.yaml", "--overwrite", cwd=tmp_path).returncode == 0
    clean_failure(finetune("cp", "lora", "mine.txt", cwd=tmp_path), "ends with .yaml")
    clean_failure(finetune("cat", "quickstrat"), "did you mean 'quickstart'?")
