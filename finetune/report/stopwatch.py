"""How long a program takes on its device: to compile, and step by step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

_WARM_UP = 2  # steps: the first ones wait for memory


@dataclass(frozen=True)
class StepTimes:
    """Seconds of steps that were waited for one by one.

    Attributes:
        seconds: from the call until the result was there.
        dispatch: from the call until it returned, the device's work under way.
    """

    seconds: tuple[float, ...]
    dispatch: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def dispatch_share(self) -> float:
        """Of a step: how much of it passes until the call returns."""
        return statistics.median(self.dispatch) / self.median

    def to_json(self) -> dict[str, Any]:
        ordered = sorted(self.seconds)
        return {
            "median": self.median,
            "fastest": ordered[0],
            "slowest": ordered[-1],
            "dispatch": statistics.median(self.dispatch),
            "count": len(ordered),
        }


def time_steps(step: Callable[[], Any], count: int, limit: float) -> StepTimes:
    """Of ``count`` calls after a warm-up, or as many as begin within ``limit`` seconds, but at least one.

    Args:
        step: starts the computation and gives its result.
    """
    for _ in range(_WARM_UP):
        jax.block_until_ready(step())
    seconds: list[float] = []
    dispatch: list[float] = []
    began = time.perf_counter()
    while len(seconds) < count and (not seconds or time.perf_counter() - began < limit):
        start = time.perf_counter()
        result = step()
        dispatch.append(time.perf_counter() - start)
        jax.block_until_ready(result)
        seconds.append(time.perf_counter() - start)
    return StepTimes(tuple(seconds), tuple(dispatch))


def time_batches(take: Callable[[], Any], count: int, limit: float, warm_up: int) -> float:
    """Batches a second, of ``count`` or as many as begin within ``limit`` seconds after a warm-up.

    Args:
        take: fetches one, or trains on one and gives what to wait for.
        warm_up: batches at the start, which may have been made ahead.
    """
    began = time.perf_counter()
    for done in range(warm_up):
        if done and time.perf_counter() - began > limit:
            break
        result = take()
    jax.block_until_ready(result)
    taken, began = 0, time.perf_counter()
    while taken < count and (not taken or time.perf_counter() - began < limit):
        result = take()
        taken += 1
    jax.block_until_ready(result)
    return taken / (time.perf_counter() - began)


@contextmanager
def compiling_anew() -> Iterator[None]:
    """What is compiled inside is not taken from the disk."""
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # which remembers whether it is used
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
