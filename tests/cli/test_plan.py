import json

import pytest
from command_line import clean_failure, finetune, read_table
from paths import SMALL

from finetune.report import plan as report
from finetune.training.memory import StepCost


@pytest.fixture
def _without_compilation(monkeypatch):
    cost = StepCost(1e9, {"arguments": 1, "temporary": 2, "peak": 3})
    monkeypatch.setattr(report, "step_cost", lambda *_: cost)
    monkeypatch.setattr(report, "largest_batch", lambda *_: 1024)


def test_plan_shows_what_is_trained_how_fast_and_what_a_step_costs():
    shown = finetune("plan", SMALL, "--parameters", "stages.1.partitions.1.layer_decay=0.9").stdout
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip().startswith("backbone/")}
    assert rows["backbone/encoder/layers/0/mlp/fc1/kernel"] == ["192x768", "frozen", "frozen"]
    assert rows["backbone/encoder/layers/3/mlp/fc1/kernel"][2:] == ["sgd", "0.0009"]
    for line in ("446,794 trainable, 1,375,680 frozen", "GFLOP for a batch of 32", "MB at the peak", "at most about"):
        assert line in shown


@pytest.mark.usefixtures("_without_compilation")
def test_plan_has_one_line_for_each_partition_and_lists_parameters_only_when_asked():
    result = finetune("plan", SMALL)
    rows = {row.pop("partition"): list(row.values()) for row in read_table(result.stdout)}
    assert rows == {
        "frozen": ["1,375,680", "frozen", "", ""],
        "backbone/encoder/layers/3/.*": ["444,864", "trainable", "sgd", "0.001"],
        "head/.*": ["1,930", "trainable", "adamw", "0.001"],
    }
    assert "fc1/kernel" not in result.stdout


@pytest.mark.usefixtures("_without_compilation")
def test_plan_as_json_is_complete():
    (stage,) = json.loads(finetune("plan", SMALL, "--json").stdout)["stages"]
    assert {"partitions", "leaves", "totals", "step", "largest_batch"} <= stage.keys()
    assert sum(leaf["size"] for leaf in stage["leaves"]) == sum(part["parameters"] for part in stage["partitions"])


@pytest.mark.slow
@pytest.mark.usefixtures("_without_compilation")
def test_plan_names_the_adapters_of_a_partition():
    rules = '[{match: backbone/.*/q_proj/kernel, learning_rate: 0.01, lora: {rank: 4}}, {match: ".*", frozen: true}]'
    rows = read_table(finetune("plan", SMALL, f"stages.1.partitions={rules}").stdout)
    status = {row["partition"]: row["status"] for row in rows}
    assert status == {"frozen": "frozen", "backbone/.*/q_proj/kernel": "frozen, lora of rank 4 trainable"}


def test_plan_of_a_checkpoint_is_one_message(tmp_path):
    clean_failure(finetune("plan", "builtin:tiny-clip"), "builtin:tiny-clip: no such file, and no bundled recipe")
    clean_failure(finetune("plan", tmp_path), "a folder, not a recipe file")
