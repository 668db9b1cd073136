import jax
import numpy as np
import pytest
from paths import SMALL

import finetune
from finetune.errors import DataError, PartitionError
from finetune.models.classifier import build_classifier
from finetune.recipe import Partition
from finetune.report import plan
from finetune.report.plan import plan_recipe


@pytest.fixture(scope="module")
def found():
    return plan_recipe(finetune.load_recipe(SMALL, ["stages.1.partitions.0.weight_decay=0.1"]))


def by_path(stage):
    return {leaf["path"]: leaf for leaf in stage["leaves"]}


def test_every_leaf_is_told_with_its_partition_optimizer_peak_rate_and_decay(found, tiny_clip):
    (stage,) = found["stages"]
    leaves = by_path(stage)
    _, variables = build_classifier(tiny_clip, 10)
    assert len(leaves) == len(jax.tree.leaves(variables["params"]))
    kernel, bias = leaves["head/kernel"], leaves["head/bias"]
    assert (kernel["optimizer"], kernel["learning_rate"], kernel["weight_decay"]) == ("adamw", 1e-3, 0.1)
    assert bias["weight_decay"] == 0.0
    assert leaves["backbone/encoder/layers/3/mlp/fc1/kernel"]["optimizer"] == "sgd"
    frozen = leaves["backbone/encoder/layers/0/mlp/fc1/kernel"]
    assert (frozen["partition"], frozen["optimizer"], frozen["learning_rate"]) == ("frozen", None, None)


def test_totals_count_what_learns_and_the_optimizers_bytes(found):
    (stage,) = found["stages"]
    learns = sum(leaf["size"] for leaf in stage["leaves"] if leaf["partition"] != "frozen")
    block = sum(leaf["size"] for leaf in stage["leaves"] if leaf["optimizer"] == "sgd")
    head = learns - block
    assert stage["totals"]["trainable"] == learns
    assert stage["totals"]["frozen"] == sum(leaf["size"] for leaf in stage["leaves"]) - learns
    assert 0 <= stage["totals"]["optimizer_bytes"] - 4 * (block + 2 * head) < 100  # a momentum, two moments, and counts


def test_the_cost_of_a_step_is_xlas_own_and_the_largest_batch_fits_the_memory(found):
    (stage,) = found["stages"]
    size, held = stage["step"]["batch_size"], stage["step"]["bytes"]
    assert size == 32
    assert stage["step"]["flops"] > 2 * 32 * 17 * 0.75 * sum(
        leaf["size"] for leaf in stage["leaves"] if "mlp" in leaf["path"]
    )
    assert held["peak"] >= held["arguments"] + held["temporary"]
    again = plan_recipe(finetune.load_recipe(SMALL, [f"stages.1.batch_size={stage['largest_batch']}"]))
    assert 0.8 < again["stages"][0]["step"]["bytes"]["peak"] / found["device"]["memory_bytes"] < 1


@pytest.fixture
def without_the_search(monkeypatch):
    """For the largest batch, which compiles the step several times."""
    monkeypatch.setattr(plan, "largest_batch", lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("without_the_search")
def test_accumulation_divides_the_temporary_memory_and_keeps_the_work():
    def step(*overrides):
        recipe = finetune.load_recipe(SMALL, ["stages.1.batch_size=64", *overrides])
        return plan_recipe(recipe)["stages"][0]["step"]

    whole, parts = step(), step("stages.1.grad_accum_steps=4")
    assert parts["bytes"]["temporary"] < 0.5 * whole["bytes"]["temporary"]
    np.testing.assert_allclose(parts["flops"], whole["flops"], rtol=0.1)


@pytest.mark.usefixtures("without_the_search")
@pytest.mark.slow
def test_layer_decay_and_adapters_show_in_the_table():
    rules = [
        Partition(match="backbone/encoder/.*/q_proj/kernel", learning_rate=1e-2, lora={"rank": 4}),
        Partition(match=".*", learning_rate=1e-3, layer_decay=0.5),
    ]
    recipe = finetune.load_recipe(SMALL)
    stage = recipe.stages[1].model_copy(update={"partitions": rules})
    (shown,) = plan_recipe(recipe.model_copy(update={"stages": [stage]}))["stages"]
    leaves = by_path(shown)
    assert leaves["backbone/encoder/layers/0/self_attn/q_proj/kernel"]["lora"] == 4
    assert leaves["backbone/encoder/layers/2/mlp/fc1/kernel"]["learning_rate"] == pytest.approx(1e-3 * 0.25)
    kernels = 4 * 192 * 192
    assert shown["totals"]["frozen"] == kernels
    assert shown["totals"]["trainable"] == sum(leaf["size"] for leaf in shown["leaves"]) - kernels + 4 * 2 * 4 * 192


@pytest.mark.usefixtures("without_the_search")
def test_no_image_is_read(tmp_path):
    for name in ("cat", "dog", "emu"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"no image")
    recipe = finetune.load_recipe(SMALL, [f"data.source={tmp_path}", "~head.num_classes"])
    found = plan_recipe(recipe)
    assert found["num_classes"] == 3
    assert by_path(found["stages"][0])["head/bias"]["shape"] == [3]


@pytest.mark.usefixtures("without_the_search")
def test_class_weights_that_the_images_decide_are_planned_without_them():
    recipe = finetune.load_recipe(SMALL, ["stages.1.loss={name: focal, class_weights: balanced}"])
    assert plan_recipe(recipe)["stages"][0]["step"]["flops"] > 0


def test_what_would_stop_the_run_stops_the_inspection():
    with pytest.raises(DataError, match="no such file or folder"):
        plan_recipe(finetune.load_recipe(SMALL, ["data.source=nope", "~head.num_classes"]))
    with pytest.raises(PartitionError, match="parameters match no rule"):
        plan_recipe(finetune.load_recipe(SMALL, ["~stages.1.partitions.2"]))
