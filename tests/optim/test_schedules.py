import jax
import numpy as np
import optax
import pytest
from paths import GOLDENS
from pydantic import TypeAdapter

from finetune.errors import PartitionError
from finetune.optim.schedules import StageLength, build_schedule
from finetune.recipe import Length, Schedule

TOTAL, PEAK = 20, 0.4
GOLDEN = np.load(GOLDENS / "optimizers" / "expected.npz")


def rates(written, total=TOTAL, peak=PEAK, steps=None, **clock):
    schedule = TypeAdapter(Schedule).validate_python(written)
    curve = jax.jit(build_schedule(schedule, peak, StageLength(total, **clock)))
    return np.array([curve(step) for step in range(steps or total)])


def half_cosine(done, end=0.0):
    return end + (1 - end) * (1 + np.cos(np.pi * np.clip(done, 0, 1))) / 2


FALLS = {  # steps since the warm-up, steps that are left after it -> share of the peak
    "constant": ({}, lambda t, rest: np.ones(len(t))),
    "cosine": ({"end_factor": 0.1}, lambda t, rest: half_cosine(t / rest, 0.1)),
    "linear": ({"end_factor": 0.2}, lambda t, rest: 1 - 0.8 * t / rest),
    "exponential": ({"transition": {"steps": 3}, "decay_rate": 0.5}, lambda t, rest: 0.5 ** (t / 3)),
    "cosine_restarts": (
        {"cycle": {"steps": 4}, "cycle_decay": 0.5},
        lambda t, rest: 0.5 ** (t // 4) * half_cosine(t % 4 / 4),
    ),
}


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.05, 1), ({"percent": 25}, 5), ({"steps": 7}, 7)])
@pytest.mark.parametrize("name", FALLS)
def test_a_schedule_is_its_closed_form_at_every_step_behind_any_warm_up(name, warmup, steps):
    options, fall = FALLS[name]
    t = np.arange(TOTAL)
    expected = PEAK * np.where(t < steps, (t + 1) / max(steps, 1), fall(np.maximum(t - steps, 0), TOTAL - steps))
    np.testing.assert_allclose(rates({"name": name, "warmup": warmup, **options}), expected, rtol=1e-5, atol=1e-7)


def test_steps_multiply_the_rate_at_milestones_of_the_stage():
    written = {"name": "step", "milestones": [0.5, {"steps": 15}], "decay_rate": 0.1, "warmup": {"steps": 2}}
    expected = PEAK * np.array([0.5] + [1.0] * 9 + [0.1] * 5 + [0.01] * 5)
    np.testing.assert_allclose(rates(written), expected, rtol=1e-5)


def test_an_exponential_may_go_down_in_stairs():
    written = {"name": "exponential", "transition": {"steps": 5}, "decay_rate": 0.5, "staircase": True}
    np.testing.assert_allclose(rates(written), PEAK * 0.5 ** (np.arange(TOTAL) // 5), rtol=1e-5)


def test_cycles_of_cosine_restarts_may_grow():
    values = rates({"name": "cosine_restarts", "cycle": {"steps": 2}, "cycle_mul": 2.0}, total=14)
    assert [step for step, value in enumerate(values) if value == np.float32(PEAK)] == [0, 2, 6]


def test_one_cycle_is_pytorchs():
    np.testing.assert_allclose(rates("one_cycle", peak=0.1)[:-1], GOLDEN["one_cycle"], rtol=1e-5, atol=1e-9)


def test_one_cycle_may_peak_between_two_steps():
    """PyTorch's OneCycleLR over 25 steps, of which three tenths are no whole number."""
    pytorch = {0: 0.04, 3: 0.4621424, 6: 0.9860521, 7: 0.9979872, 12: 0.7754494, 20: 0.1234678, 24: 4e-06}
    values = rates("one_cycle", total=25, peak=1.0)
    np.testing.assert_allclose([values[step] for step in pytorch], list(pytorch.values()), rtol=1e-5, atol=1e-7)


def test_a_cycle_that_the_stage_cuts_short_stays_where_it_was():
    values = rates({"name": "cosine_restarts", "cycle": {"steps": 4}}, total=10, peak=1.0, steps=50)
    np.testing.assert_allclose(values[8:11], [1.0, half_cosine(0.25), half_cosine(0.5)], rtol=1e-6)
    assert np.ptp(values[10:]) == 0


@pytest.mark.parametrize("name", ["cosine", "linear", "exponential", "one_cycle"])
def test_past_its_last_step_a_schedule_stays_at_its_end(name):
    options = {"end_factor": 0.25} if name != "exponential" else {"transition": {"steps": 10}, "decay_rate": 0.5}
    values = rates({"name": name, "warmup": 0.2, **options}, steps=60)
    assert np.ptp(values[TOTAL:]) == 0
    end = 0.25 if name != "exponential" else 0.5**1.6
    np.testing.assert_allclose(values[-1], PEAK * end, rtol=1e-5)


def test_durations_mean_the_same_in_every_unit():
    clock = StageLength(200, steps_per_epoch=40, batch_size=16)
    lengths = [Length(steps=50), Length(epochs=1.25), Length(percent=25), Length(examples=800)]
    assert [clock.steps(length) for length in lengths] == [50] * 4
    assert clock.steps(Length(examples=801)) == 51
    written = {"name": "cosine", "warmup": {"epochs": 2}}
    np.testing.assert_array_equal(rates(written, steps_per_epoch=4), rates({"name": "cosine", "warmup": {"steps": 8}}))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"name": "cosine", "warmup": {"steps": 20}}, "cosine: a warm-up of 20 steps in a stage of 20"),
        ({"name": "cosine", "warmup": {"epochs": 1}}, "in epochs needs steps_per_epoch"),
        ({"name": "cosine", "warmup": {"examples": 9}}, "in examples needs batch_size"),
        ({"name": "step", "milestones": [0.5, 0.25]}, r"have to rise, .*received, in steps: 10, 5"),
        ({"name": "step", "milestones": [{"steps": 20}]}, r"before the stage's end \(20\)"),
        ({"name": "step", "milestones": [0.1], "warmup": 0.2}, r"after the warm-up \(4\)"),
        ({"name": "exponential", "transition": {"steps": 0}, "decay_rate": 0.5}, "transition: needs at least one step"),
        ({"name": "cosine_restarts", "cycle": 0.01}, "cycle: needs at least one step"),
        (
            {"name": "cosine", "warmup": 0.02, "warmup_init_factor": 0.1},
            r"warmup: needs at least one step; received {percent: 2} in a stage of 20; make it longer",
        ),
    ],
)
def test_durations_that_do_not_fit_are_refused(written, message):
    with pytest.raises(PartitionError, match=message):
        rates(written)


def test_a_warm_up_may_start_from_any_rate():
    written = {"name": "cosine", "warmup": {"steps": 6}, "warmup_init_factor": 0.25, "end_factor": 0.1}
    theirs = optax.warmup_cosine_decay_schedule(0.25 * PEAK, PEAK, 6, TOTAL, 0.1 * PEAK)
    np.testing.assert_allclose(rates(written), [theirs(step) for step in range(TOTAL)], rtol=1e-6)
    with pytest.raises(ValueError, match="has no effect without a warmup"):
        rates({"name": "cosine", "warmup_init_factor": 0.0})
