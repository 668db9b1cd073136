from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from finetune.distributed.sharding import on_all_devices
from finetune.optim.schedules import StageLength
from finetune.training.loop import AHEAD, Checkpoint, Evaluate, Finished, Logged, fit
from finetune.training.state import TrainState

ONE_DEVICE = on_all_devices()


class Batches:
    """Numbered batches that count how many were fetched."""

    def __init__(self):
        self.fetched = 0

    def __next__(self):
        self.fetched += 1
        return {"image": np.full(1, self.fetched)}

    def get_state(self):
        return {"fetched": self.fetched}


def train(total, *, epoch=2, stop_after=None):
    """(number of each step's batch, batches fetched when it began, the events)."""
    batches, seen, fetched = Batches(), [], []

    def step(state, frozen, batch):
        seen.append(int(batch["image"][0]))
        fetched.append(batches.fetched)
        sums = {"loss": jnp.ones(()), "correct": jnp.ones(()), "count": jnp.ones(()), "steps": jnp.ones(())}
        sums["not_finite"] = jnp.zeros(())
        new = TrainState(state.step + 1, state.params, {}, state.opt_state, state.rng, None)
        return new, {**sums, "grad_norm": {}}

    trainer = SimpleNamespace(step=step, frozen={}, placement=ONE_DEVICE, length=StageLength(total, epoch))
    state = TrainState.create({}, {}, optax.identity(), jax.random.key(0))
    stop = (lambda: len(seen) >= stop_after) if stop_after else (lambda: False)
    events = list(fit(trainer, state, batches, log_every=2, should_stop=stop))
    return seen, fetched, events


def steps_of(kind, events):
    return [event.step for event in events if isinstance(event, kind)]


def test_two_batches_are_fetched_before_they_are_needed_and_none_too_many():
    seen, fetched, events = train(6)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert fetched == [AHEAD, 3, 4, 5, 6, 6]
    assert int(events[0].batch["image"][0]) == 1
    assert (events[-1].step, int(events[-1].state.step)) == (6, 6)


def test_epochs_end_in_an_evaluation_and_all_but_the_last_in_a_checkpoint():
    _, _, events = train(5)
    assert steps_of(Logged, events) == steps_of(Evaluate, events) == [2, 4, 5]
    assert steps_of(Checkpoint, events) == [2, 4]
    assert [type(event) for event in events[-3:]] == [Logged, Evaluate, Finished]


def test_a_stop_within_an_epoch_saves_without_an_evaluation():
    seen, _, events = train(9, stop_after=3)
    assert seen == [1, 2, 3]
    assert steps_of(Evaluate, events) == [2]
    assert steps_of(Checkpoint, events) == [2, 3]
    assert steps_of(Finished, events) == [3]


def test_a_saved_position_is_behind_the_last_batch_that_was_used_not_the_last_that_was_fetched():
    _, fetched, events = train(9, stop_after=3)
    positions = [event.loader["fetched"] for event in events if isinstance(event, Checkpoint)]
    assert positions == [2, 3]
    assert fetched[-1] > 3


def test_a_finished_stage_has_nothing_left_to_do():
    trainer = SimpleNamespace(step=None, frozen={}, placement=ONE_DEVICE, length=StageLength(4, 2))
    state = TrainState.create({}, {}, optax.identity(), jax.random.key(0)).replace(step=jnp.int32(4))
    assert steps_of(Finished, list(fit(trainer, state, Batches(), log_every=2))) == [4]


def test_a_log_is_the_mean_over_the_steps_since_the_last():
    _, _, events = train(4)
    first = next(event for event in events if isinstance(event, Logged))
    assert (first.step, first.loss, first.accuracy) == (2, 1.0, 1.0)
