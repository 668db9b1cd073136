import json
import shutil

import pytest

from finetune.folder.run_folder import RunFolder
from finetune.recipe import load_recipe
from finetune.report.compare_page import with_unique_names, write_comparison


@pytest.fixture
def other(small_run, tmp_path):
    """A copy of the small run with another recipe, in a folder whose name is no HTML."""
    folder = tmp_path / "<b>&" / small_run.directory.name
    shutil.copytree(small_run.directory, folder)
    RunFolder(folder).write_recipe(load_recipe(folder / "recipe.yaml", ["stages.0.l2=2.0"]))
    return folder


def test_the_page_has_results_tests_settings_and_classes(small_run, other, tmp_path):
    write_comparison([small_run.directory, other], tmp_path / "new" / "side.html")
    text = (tmp_path / "new" / "side.html").read_text()
    assert "<b>&<" not in text
    assert "&lt;b&gt;&amp;" in text
    assert "(p = 1), no difference that 180 test images can show." in text
    assert text.count("<td>stages.0.l2</td><td>1.0</td><td>2.0</td>") == 1
    for section in ("Results", "Paired tests", "Curves", "Classes", "Settings that differ"):
        assert f"<h2>{section}</h2>" in text


def test_runs_on_other_images_are_shown_without_a_test(small_run, other, tmp_path):
    model = json.loads((other / "model" / "model.json").read_text())
    (other / "model" / "model.json").write_text(json.dumps(model | {"class_names": list("abcdefghij")}))
    write_comparison([small_run.directory, other], tmp_path / "side.html")
    text = (tmp_path / "side.html").read_text()
    assert "they do not compare: other classes" in text
    assert "no two runs have the same test images" in text


def test_folders_of_one_name_are_told_apart_by_their_paths():
    runs = [{"name": name, "directory": f"{place}/{name}"} for name, place in (("a", "x"), ("a", "y"), ("b", "x"))]
    assert [run["name"] for run in with_unique_names(runs)] == ["x/a", "y/a", "b"]
