import itertools

import jax
import pytest

from finetune.report.stopwatch import StepTimes, compiling_anew, time_batches, time_steps


def test_steps_are_as_many_as_asked_for_after_a_warm_up():
    calls = itertools.count()
    assert len(time_steps(lambda: next(calls), 5, limit=60).seconds) == 5
    assert next(calls) == 5 + 2


def test_a_limit_that_has_passed_leaves_one_step():
    assert len(time_steps(lambda: 0, 100, limit=0).seconds) == 1


def test_batches_of_the_warm_up_are_not_counted():
    taken = []
    rate = time_batches(lambda: taken.append(0), 6, limit=60, warm_up=4)
    assert len(taken) == 10
    assert rate > 0


def test_the_median_stands_for_the_steps():
    times = StepTimes((0.1, 0.3, 0.2), (0.05, 0.05, 0.2))
    assert times.median == 0.2
    assert times.dispatch_share == pytest.approx(0.25)
    assert times.to_json() == {"median": 0.2, "fastest": 0.1, "slowest": 0.3, "dispatch": 0.05, "count": 3}


@pytest.fixture
def cache():
    """Sets whether compiled programs are kept."""
    yield lambda on: jax.config.update("jax_enable_compilation_cache", on)
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.parametrize("before", [True, False])
def test_compiling_anew_leaves_the_cache_of_programs_as_it_was(before, cache):
    cache(before)
    with compiling_anew():
        assert not jax.config.values["jax_enable_compilation_cache"]
    assert jax.config.values["jax_enable_compilation_cache"] is before
