"""Eight simulated devices against one, in a process of its own."""

import json
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT, SMALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def facts(once):
    """What ``tests/support/on_eight_devices.py`` prints."""

    def make(folder):
        (folder / "recipe.yaml").write_text(SMALL.read_text(encoding="utf-8"))
        program = [sys.executable, ROOT / "tests" / "support" / "on_eight_devices.py", folder]
        result = subprocess.run(program, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert "rematerialization" not in result.stderr  # no activations are gathered
        (folder / "facts.json").write_text(result.stdout.splitlines()[-1])

    return json.loads((once("eight_devices", make) / "facts.json").read_text())


@pytest.mark.parametrize("mesh", ["data 8", "fsdp 8", "data 4 x tensor 2"])
def test_dropout_accumulation_and_mixup_give_the_losses_of_one_device(facts, mesh):
    losses = facts["transformer"]
    np.testing.assert_allclose(losses[mesh]["losses"], losses["one"]["losses"], rtol=1e-5)


def test_batch_normalization_is_over_the_whole_batch(facts):
    losses = facts["batch_norm"]
    np.testing.assert_allclose(losses["data 8"]["losses"], losses["one"]["losses"], rtol=1e-5)


def test_adapters_and_frozen_parameters_give_the_losses_of_one_device(facts):
    losses = facts["frozen"]
    np.testing.assert_allclose(losses["fsdp 8"]["losses"], losses["one"]["losses"], rtol=1e-5)


def test_a_device_has_an_eighth_of_parameters_and_optimizer_and_frozen_parameters(facts):
    assert facts["transformer"]["fsdp 8"]["share"] <= 1.05 / 8
    assert facts["frozen"]["fsdp 8"]["frozen_share"] <= 1.05 / 8
    assert facts["transformer"]["data 8"]["share"] == 1


def test_a_step_leaves_the_state_where_it_was(facts):
    assert all(run["stays"] for case in ("transformer", "frozen") for run in facts[case].values() if run != "one")


def test_states_are_restored_to_the_same_bits_into_the_parts_of_every_mesh(facts):
    assert len(facts["restored"]) == 9
    assert {name: outcome for name, outcome in facts["restored"].items() if outcome != [True, True]} == {}


def test_a_probe_is_the_same_on_all_devices(facts):
    assert facts["probe"]["l2"][0] == facts["probe"]["l2"][1]
    assert facts["probe"]["largest"] < 1e-3


def test_a_run_and_its_predictor_use_all_devices(facts, small_run):
    run = facts["predictor"]
    assert run["devices"] == 8
    assert max(run["largest"]) < 1e-5
    assert run["shard"] == [192, 768 // 4]
    assert run["frozen_unchanged"]
    for ours, theirs in zip(run["results"], small_run.summary["results"], strict=True):
        assert ours["accuracy"] == theirs["accuracy"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
