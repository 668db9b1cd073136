from types import SimpleNamespace

import jax
import pytest
from command_line import clean_failure, finetune
from paths import SMALL

from finetune.errors import MachineError
from finetune.run import out_of_memory
from finetune.run.out_of_memory import describe_need, memory_explained
from finetune.training.memory import StepCost

GB = 10**9
EXHAUSTED = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore")
STAGE = SimpleNamespace(name="tune", batch_size=48, grad_accum_steps=2)
TRAINER = SimpleNamespace(stage=STAGE, placement=SimpleNamespace(batch_shards=4))


@pytest.fixture
def taking(monkeypatch):
    """``taking(bytes)``: what a step takes of a device of 10 GB, where a batch of 32 fits."""

    def takes(peak):
        monkeypatch.setattr(out_of_memory, "device_memory", lambda: 10 * GB)
        monkeypatch.setattr(out_of_memory, "step_cost", lambda *_: StepCost(0.0, {"peak": peak}))
        monkeypatch.setattr(out_of_memory, "largest_batch", lambda *_: 32)

    return takes


def test_the_error_names_the_stage_the_estimate_and_a_batch_that_fits(taking):
    taking(15 * GB)
    with pytest.raises(MachineError) as caught, memory_explained(TRAINER, None):
        raise EXHAUSTED
    for part in ("stage 'tune'", "Out of memory allocating 99 bytes", "batch_size 48 takes 15.00 GB", "has 10.00 GB"):
        assert part in str(caught.value)
    assert "batch_size: 32 fits" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_step_that_should_have_fitted_is_advised_half_a_batch_that_can_be_divided(taking):
    taking(5 * GB)
    assert "other programs may hold the rest; try batch_size: 24" in describe_need(TRAINER, None)


def test_where_nothing_fits_it_is_told(taking, monkeypatch):
    taking(15 * GB)
    monkeypatch.setattr(out_of_memory, "largest_batch", lambda *_: None)
    assert "no batch fits" in describe_need(TRAINER, None)


def test_no_estimate_is_better_than_another_error(monkeypatch):
    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(out_of_memory, "step_cost", fails)
    with pytest.raises(MachineError, match="out of memory: .*; use less"), memory_explained(TRAINER, None):
        raise EXHAUSTED


def test_other_errors_pass_as_they_are():
    with pytest.raises(ValueError, match="of another kind"), memory_explained(TRAINER, None):
        raise ValueError("of another kind")


@pytest.mark.slow
def test_a_run_that_is_out_of_memory_ends_with_a_batch_that_fits(tmp_path, monkeypatch):
    from finetune.training import memory
    from finetune.training.stage_trainer import StageTrainer

    monkeypatch.setattr(StageTrainer, "init_state", exhausted_when_run(StageTrainer.init_state))
    for module in (memory, out_of_memory):
        monkeypatch.setattr(module, "device_memory", lambda: 20_000_000)
    result = finetune("run", SMALL, "stages.1.frozen_cache=off", "stages.1.batch_size=64", cwd=tmp_path)
    clean_failure(result, "stage 'finetune': out of memory", "batch_size 64 takes", "has 20.0 MB: batch_size: ", "fits")


def exhausted_when_run(init_state):
    """Fails where a state is made, and not where its shapes are asked for."""

    def fails(trainer):
        state = init_state(trainer)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
            raise EXHAUSTED
        return state

    return fails
