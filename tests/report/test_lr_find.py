import math

import numpy as np
import pytest

import finetune
from finetune.errors import RecipeError
from finetune.report.lr_find import RangeTest


def test_the_suggestion_is_where_the_loss_falls_fastest():
    factors = np.geomspace(1e-3, 1e3, 100)
    losses = 2 / (1 + factors / 2) + 0.01 * np.maximum(0, factors - 100)  # falls fastest at 2, by its logarithm
    test = RangeTest.of(factors, losses)
    assert test.suggested == pytest.approx(2, rel=0.2)
    assert len(test.smoothed) == 100


def test_a_loss_that_only_grows_suggests_nothing():
    factors = np.geomspace(1e-3, 1e3, 50)
    assert RangeTest.of(factors, 1 + np.log1p(factors)).suggested is None


def test_a_stage_that_is_none_and_a_recipe_without_one_are_errors():
    recipe = finetune.load_recipe("quickstart")
    with pytest.raises(RecipeError, match=r"stage 'finetun': no training stage \(did you mean 'finetune'\?\)"):
        finetune.find_learning_rate(recipe, stage="finetun")
    with pytest.raises(RecipeError, match="no stage trains by gradient descent"):
        finetune.find_learning_rate(finetune.load_recipe("quickstart", ["~stages.1"]))
    with pytest.raises(RecipeError, match="5 show no curve"):
        finetune.find_learning_rate(recipe, steps=5)


@pytest.mark.slow
def test_the_quickstarts_rates_are_found_again(tmp_path):
    recipe = finetune.load_recipe("quickstart")
    results = [
        finetune.find_learning_rate(recipe, steps=60, figure=tmp_path / name, quiet=True) for name in ("a.png", "b.svg")
    ]
    assert results[0] == results[1]  # the same bits
    assert 0.2 < results[0]["suggested"] < 20  # of rates that are known to be good
    assert results[0]["losses"][0] == pytest.approx(math.log(10), rel=0.1)
    assert [each["name"] for each in results[0]["partitions"]] == ["head", "backbone"]
    assert (tmp_path / "a.png").stat().st_size > 5000
