import json

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.errors import CheckpointError, DataError, ModelError, RecipeError
from finetune.recipe import DataConfig
from finetune.report import leaderboard

DIGITS = DataConfig(source="digits", fraction=0.3, test=0.1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the result, its folder)."""
    folder = tmp_path_factory.mktemp("leaderboard") / "board"
    heads = ["linear_probe", "knn", "zero_shot"]
    return make(heads, folder), folder


def make(heads, folder=None):
    templates = ["a photo of the digit {}", "the number {}"]
    return finetune.make_leaderboard(
        DIGITS, ["builtin:tiny-clip"], heads, templates=templates, output=folder, quiet=True
    )


@pytest.mark.slow
def test_every_head_is_measured_on_the_test_images_with_its_interval(made):
    board, _ = made
    rows = {row["head"]: row for row in board["rows"]}
    assert len(rows) == 3
    for row in rows.values():
        assert row["n"] == 180
        assert row["interval"][0] < row["accuracy"] < row["interval"][1]
        assert row["images_per_second"] > 0
    assert rows["linear_probe"]["accuracy"] > rows["zero_shot"]["accuracy"] > 0.8
    assert rows["knn"]["parameters"] > rows["linear_probe"]["parameters"]


@pytest.mark.slow
def test_every_type_of_head_can_take_part():
    heads = ["prototype", "tip_adapter", "lp++", "clap"]
    rows = {row["head"]: row["accuracy"] for row in make(heads)["rows"]}
    assert set(rows) == set(heads)
    assert min(rows.values()) > 0.85


@pytest.mark.slow
def test_the_order_is_that_of_the_validation_images(made):
    board, _ = made
    assert board["chosen_on"] == "validation"
    validation = [row["validation"] for row in board["rows"]]
    assert validation == sorted(validation, reverse=True)


@pytest.mark.slow
def test_it_is_written_as_json_as_a_picture_and_as_the_recipe_of_the_best(made):
    board, folder = made
    assert json.loads((folder / "leaderboard.json").read_text())["rows"] == board["rows"]
    with Image.open(folder / "leaderboard.png") as image:
        assert image.width > 400
    recipe = finetune.load_recipe(folder / "best.yaml")
    assert recipe.backbone.source == board["rows"][0]["backbone"]
    assert recipe.data == DIGITS


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_recipe_of_the_best_has_whole_paths_and_a_loss_for_the_labels(tmp_path, monkeypatch, multi_label):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    row = {"head": "linear_probe", "backbone": "owner/name", "metric": "accuracy", "accuracy": 0.5, "n": 10}
    text = leaderboard._recipe_text(row, DataConfig(source="photos"), [], 0, multi_label=multi_label)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "best.yaml").write_text(text)
    recipe = finetune.load_recipe(tmp_path / "made" / "best.yaml")
    assert recipe.data.source == str(tmp_path / "photos")
    assert recipe.backbone.source == "owner/name"
    assert recipe.stages[1].loss.name == ("binary_cross_entropy" if multi_label else "cross_entropy")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear_probe", "knn"])
def test_a_run_with_a_head_gives_the_figure_of_the_leaderboard(made, tmp_path, head):
    board, _ = made
    expected = next(row for row in board["rows"] if row["head"] == head)
    recipe = finetune.Recipe(name="one", backbone={"source": "builtin:tiny-clip"}, data=DIGITS, stages=[{"type": head}])
    result = finetune.run(recipe, output=tmp_path / "run", quiet=True)
    assert result.summary["results"][-1]["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_a_head_of_class_names_is_left_out_where_there_is_no_text_tower(goldens, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(24):
        file = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    data = DataConfig(source=str(tmp_path / "images"), validation=0)
    vit = str(goldens / "vit")
    board = finetune.make_leaderboard(data, [vit], ["prototype", "lp++"], quiet=True)
    assert [row["head"] for row in board["rows"]] == ["prototype"]
    assert board["left_out"] == [f"lp++ on {vit}, which has no text tower"]
    assert board["chosen_on"] == "test"
    with pytest.raises(DataError, match="nothing to compare: lp"):
        finetune.make_leaderboard(data, [vit], ["lp++"], quiet=True)


@pytest.mark.slow
def test_mistakes_are_told_before_anything_is_computed(made, tmp_path):
    with pytest.raises(RecipeError, match=r"heads: 'lineer_probe' is none \(did you mean 'linear_probe'\?\)"):
        finetune.make_leaderboard(DIGITS, ["builtin:tiny-clip"], ["lineer_probe"])
    with pytest.raises(ModelError, match="no-such-model"):
        finetune.make_leaderboard(DIGITS, ["builtin:tiny-clip", "no-such-model"], ["knn"])
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds a run"):
        finetune.make_leaderboard(DIGITS, ["builtin:tiny-clip"], ["knn"], output=tmp_path)
