import jax
import jax.numpy as jnp
import numpy as np
import optax

from finetune.training.loop import AHEAD, fit
from finetune.training.state import TrainState


class Batches:
    """Numbered batches that count how many were fetched."""

    def __init__(self):
        self.fetched = 0

    def __next__(self):
        self.fetched += 1
        return {"image": np.full(1, self.fetched)}

    def get_state(self):
        return {"fetched": self.fetched}


def train(total, *, pause_every=2, stop_after=None):
    """(number of each step's batch, batches fetched when it began, (step, position) of each pause)."""
    batches, seen, fetched, pauses = Batches(), [], [], []

    def step(state, frozen, batch):
        seen.append(int(batch["image"][0]))
        fetched.append(batches.fetched)
        sums = {"loss": jnp.ones(()), "correct": jnp.ones(()), "count": jnp.ones(()), "steps": jnp.ones(())}
        new = TrainState(state.step + 1, state.params, {}, state.opt_state, state.rng, None)
        return new, {**sums, "grad_norm": {}}

    state = fit(
        step,
        TrainState.create({}, {}, optax.identity(), jax.random.key(0), averaged=False),
        {},
        batches,
        total_steps=total,
        log_every=2,
        pause_every=pause_every,
        on_log=lambda log: None,
        on_pause=lambda state, position: pauses.append((int(state.step), position["fetched"])),
        stopping=lambda: stop_after is not None and len(seen) >= stop_after,
    )
    return int(state.step), seen, fetched, pauses


def test_two_batches_are_fetched_before_they_are_needed_and_none_too_many():
    step, seen, fetched, _ = train(6)
    assert (step, seen) == (6, [1, 2, 3, 4, 5, 6])
    assert fetched == [AHEAD, 3, 4, 5, 6, 6]


def test_a_saved_position_is_behind_the_last_batch_that_was_used_not_the_last_that_was_fetched():
    assert train(5)[3] == [(2, 2), (4, 4), (5, 5)]
    step, seen, fetched, pauses = train(9, stop_after=3)
    assert (step, seen, pauses) == (3, [1, 2, 3], [(2, 2), (3, 3)])
    assert fetched[-1] > 3
