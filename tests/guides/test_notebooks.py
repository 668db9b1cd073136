"""The notebooks in examples/: saved without outputs, and a kernel runs them to the end."""

import json
import re

import pytest
from paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def read(name):
    return json.loads((ROOT / "examples" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_without_outputs_and_ends_with_a_newline(path):
    notebook = read(path.name)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert path.read_bytes().endswith(b"}\n")
    assert path.stat().st_size < 20_000


def test_readers_find_them():
    for page in ("README.md", "docs/quickstart.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert all(f"examples/{path.name}" in text for path in NOTEBOOKS)


@pytest.fixture(scope="module")
def outputs(once):
    """``outputs(name)``: what each code cell of a notebook leaves, once a kernel has run all of them."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient (the extra `dev`)")
    nbformat = pytest.importorskip("nbformat")

    def executed(name):
        def execute(folder):
            notebook = nbformat.read(ROOT / "examples" / name, as_version=4)
            place = {"metadata": {"path": str(folder)}}
            nbclient.NotebookClient(notebook, timeout=300, resources=place, kernel_name="python3").execute()
            nbformat.write(notebook, folder / name)

        notebook = nbformat.read(once(f"notebook_{name}", execute) / name, as_version=4)
        nbformat.validate(notebook)
        return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]

    return executed


def shown(cell, kind="text/plain"):
    """What a cell shows; it has to be one thing."""
    (output,) = cell
    assert output.output_type in ("execute_result", "display_data"), output
    return output.data[kind]


@pytest.mark.slow
def test_the_quickstart_goes_from_a_recipe_to_predictions(outputs):
    recipe, run, result, accuracy, again, predictor, predictions = outputs("quickstart.ipynb")
    assert shown(recipe).startswith("Recipe(name='quickstart', backbone='builtin:tiny-clip'")
    assert "whole recipe" in shown(recipe, "text/html")
    lines = shown(run).splitlines()  # no bar, no widget and no warning is left, but the lines that a terminal has
    assert len(lines) > 5
    assert not re.search("━|Output|warning", "".join(lines), re.IGNORECASE)
    page = shown(result, "text/html")
    assert page.count("data:image/png;base64,") >= 3
    assert page.count("<tr") == 5
    assert "'probe': 0.9" in shown(accuracy)
    assert "'accuracy_interval': " in shown(again)
    assert shown(predictor).startswith("Predictor(model='VisionTransformer'")
    assert shown(predictions).count("Prediction(label='") == 5


@pytest.mark.slow
def test_a_loop_of_ones_own_ends_with_a_saved_classifier(outputs):
    backbone, head, labels, optimizer, pixels, loop, frozen, predictor, accuracy = outputs("own_loop.ipynb")
    assert shown(backbone).startswith("Backbone(family='clip'")
    assert "(192, 10)" in shown(head)
    assert "'frozen': " in shown(labels)
    assert shown(pixels) == "((1797, 32, 32, 3), dtype('uint8'))"
    assert re.fullmatch(r"'loss 2\.30 at first, 0\.\d\d at the end'", shown(loop))
    assert optimizer == frozen == []
    assert "classes=10" in shown(predictor)
    assert float(shown(accuracy)) > 0.97
