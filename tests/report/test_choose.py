from types import SimpleNamespace

import numpy as np
import pytest

import finetune
from finetune.errors import RecipeError
from finetune.report.choose import describe_number, size_for_small_images, wanted_epochs


def choose(minutes=60, **data):
    config = finetune.load_recipe("quickstart").data.model_copy(update=data)
    return finetune.choose_recipe(config, backbone="builtin:tiny-clip", minutes=minutes, quiet=True)


def frozen(chosen):
    """What the last stage freezes."""
    return [rule.match for rule in chosen.recipe.train_stages[1].partitions if rule.frozen]


def test_more_images_are_seen_fewer_times_within_limits():
    epochs = [wanted_epochs(images) for images in (40, 300, 1200, 10**6)]
    assert epochs == [20, 20, 10, 4]


@pytest.mark.parametrize(("edge", "size"), [(32, 96), (33, 128), (50, 160), (56, None), (64, None), (500, None)])
def test_small_images_are_enlarged_three_times_at_most(edge, size):
    spec = SimpleNamespace(height=224, width=224)
    stats = SimpleNamespace(width=np.array([edge, 4 * edge, edge]), height=np.array([2 * edge, edge, edge]))
    assert size_for_small_images(spec, SimpleNamespace(train=SimpleNamespace(stats=stats))) == size


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.347, "0.35"), (3.0, "3"), (4.26, "4.3"), (9.97, "10"), (40.0, "40"), (59.6, "60"), (2512.3, "2,512")],
)
def test_counts_and_speeds_are_said_in_plain_figures(value, said):
    assert describe_number(value) == said


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_a_run_takes_some_time(minutes):
    with pytest.raises(RecipeError, match="minutes: give how many the run may take, above 0; received"):
        choose(minutes)


@pytest.mark.slow
def test_what_is_trained_follows_from_the_images_of_each_class():
    few, some, many = (choose(shots_per_class=shots) for shots in (3, 10, 40))
    assert [stage.name for stage in few.recipe.stages] == ["probe"]
    assert "fewer than 5 images of each class" in few.reasons[1]
    assert frozen(some)[0].startswith("blocks[:-")
    assert "the last quarter of the blocks" in some.reasons[1]
    assert "fewer than 20 images of each class" in some.reasons[1]
    assert frozen(many) == []
    assert "all parameters" in many.reasons[1]
    assert "400 training images of 10 classes, 40 of each" in many.reasons[0]
    for chosen in (some, many):
        assert chosen.recipe.train_stages[1].augment.hflip == 0  # a mirrored digit is none
        finetune.validate_recipe(chosen.recipe)


@pytest.mark.slow
def test_what_takes_too_long_is_left_for_what_does_not_and_said():
    chosen = choose(minutes=1e-3, shots_per_class=40)
    assert [stage.name for stage in chosen.recipe.stages] == ["probe"]
    assert "a linear probe alone (to train all parameters takes about" in chosen.reasons[1]
