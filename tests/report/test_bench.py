import pytest
from paths import SMALL

import finetune
from finetune.errors import DataError, RecipeError


def names(result):
    return [(stage["name"], "extraction" in stage, "step_seconds" in stage) for stage in result["stages"]]


@pytest.mark.slow
def test_each_stage_is_measured_with_its_data_and_nothing_is_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = finetune.bench_recipe(finetune.load_recipe(SMALL, ["stages.1.frozen_cache=off"]), steps=3, quiet=True)
    assert names(result) == [("probe", True, False), ("finetune", False, True)]
    probe, train = result["stages"][0]["extraction"], result["stages"][1]
    for part in (probe, train):
        assert part["step_seconds"]["count"] == 3
        assert part["step_seconds"]["fastest"] <= part["step_seconds"]["median"] <= part["step_seconds"]["slowest"]
        assert part["images_per_second"] == pytest.approx(part["batch_size"] / part["step_seconds"]["median"])
        assert part["input_images_per_second"] > 0
        assert part["fed_images_per_second"] > 0
        assert part["peak"]["source"] == "measured"
        assert part["share_of_peak"] > 0
        assert part["memory"]["peak_bytes"] > 1e6
        assert part["first_step_seconds"] > part["compile_seconds"] > 0
        assert part["bound"] in ("input", "device", "host")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_is_frozen_is_measured_as_it_is_run_once():
    result = finetune.bench_recipe(finetune.load_recipe(SMALL, ["stages.1.epochs=20"]), steps=2, quiet=True)
    assert names(result)[1] == ("finetune", True, True)
    step, extraction = result["stages"][1], result["stages"][1]["extraction"]
    assert step["flops"] / step["batch_size"] < extraction["flops"] / extraction["batch_size"]


@pytest.mark.slow
def test_random_images_need_no_data():
    recipe = finetune.load_recipe(SMALL, ["data.source=/nowhere/at/all", "~head.num_classes"])
    with pytest.raises(DataError, match="no such file or folder"):
        finetune.bench_recipe(recipe, quiet=True)
    result = finetune.bench_recipe(recipe, synthetic=True, steps=2, quiet=True)
    assert [part["input_images_per_second"] for part in (result["stages"][0]["extraction"], result["stages"][1])] == [
        None,
        None,
    ]


@pytest.mark.slow
def test_every_kind_of_head_and_several_labels_are_measured_without_data():
    train = (
        "{name: train, steps: 1, batch_size: 8, loss: binary_cross_entropy, "
        "partitions: [{match: '.*', learning_rate: 0.1}]}"
    )
    overrides = ["head.init=zeros", "~head.templates", "data.source=nope", "evaluate.metric=mean_average_precision"]
    several = finetune.load_recipe(SMALL, [*overrides, f"stages=[{train}]"])
    assert names(finetune.bench_recipe(several, synthetic=True, steps=1, quiet=True)) == [("train", False, True)]
    heads = "[{type: tip_adapter, name: tip}, {type: linear_probe, name: probe}, " + train.replace(
        ", loss: binary_cross_entropy", ""
    )
    mixed = finetune.load_recipe(SMALL, ["data.source=nope", f"stages={heads}]"])
    measured = finetune.bench_recipe(mixed, synthetic=True, steps=1, quiet=True)
    assert [name for name, *_ in names(measured)] == ["tip", "probe", "train"]


def test_no_steps_are_refused():
    with pytest.raises(RecipeError, match="at least 1"):
        finetune.bench_recipe(finetune.load_recipe(SMALL), steps=0)
