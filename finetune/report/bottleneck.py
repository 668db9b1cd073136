"""What bounds a stage: its input, its device, or the host that starts the steps; and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_NEAR = 0.85  # of the device's speed: as fast as it, but for chance
_GOOD_SHARE = 0.4  # of a device's peak; well-made training steps reach about that


@dataclass(frozen=True)
class Speeds:
    """Of one stage.

    Attributes:
        device: images a second of the step alone.
        input: of the loader alone; None without data.
        fed: of steps that the loader feeds; None without data.
        dispatch: share of a step until its call returns.
        share_of_peak: of the device's peak FLOP/s.
    """

    device: float
    input: float | None
    fed: float | None
    dispatch: float
    share_of_peak: float


@dataclass(frozen=True)
class Settings:
    """What the advice depends on.

    Attributes:
        processors: that may decode images.
        decodes: images are files or encoded, not arrays in memory.
        shrinks: images are kept in a smaller size.
        trains: rather than extracting features.
    """

    platform: str
    compute_dtype: str
    num_workers: int
    processors: int
    decodes: bool
    shrinks: bool
    trains: bool


@dataclass(frozen=True)
class Bottleneck:
    """``what`` bounds the stage, in a sentence, with advice."""

    what: Literal["input", "device", "host"]
    sentence: str


def find_bottleneck(speeds: Speeds, settings: Settings) -> Bottleneck:
    """The slowest part; the device where nothing else is slower."""
    if speeds.input is not None and speeds.input < speeds.device:
        rates = f"images arrive at {speeds.input:,.0f}/s and the device takes {speeds.device:,.0f}/s"
        return Bottleneck("input", f"the input bounds it: {rates}; {_advice_on_input(settings)}")
    if speeds.dispatch > 0.5:
        reason = f"starting a step takes {speeds.dispatch:.0%} of it, and the device waits"
        return Bottleneck("host", f"the host bounds it: {reason}; a larger batch_size starts fewer")
    slowed = speeds.fed is not None and speeds.fed < _NEAR * speeds.device
    if slowed and settings.platform == "cpu":
        rates = f"{speeds.fed:,.0f} images/s of {speeds.device:,.0f}/s without it"
        return Bottleneck("device", f"the processor bounds it, and the loader has a part of that: {rates}")
    if slowed:
        rates = f"{speeds.fed:,.0f} images/s of {speeds.device:,.0f}/s"
        advice = (
            "set data.num_workers, so that processes make the batches"
            if not settings.num_workers
            else ("use a larger batch_size")
        )
        return Bottleneck("host", f"the host bounds it: fed by its loader, the device does {rates}; {advice}")
    return Bottleneck(
        "device", f"the device bounds it, at {speeds.share_of_peak:.0%} of its peak; {_advice(speeds, settings)}"
    )


def _advice_on_input(settings: Settings) -> str:
    if not settings.decodes:
        return "use a lighter augment, or more processors"
    if not settings.num_workers and settings.processors > 1 and settings.platform != "cpu":
        return f"set data.num_workers, up to {settings.processors} here"
    if not settings.shrinks and settings.trains:
        return "set data.cache_shortest_edge, so that large images are decoded once, or use more processors"
    return "use a lighter augment, or more processors"


def _advice(speeds: Speeds, settings: Settings) -> str:
    if speeds.share_of_peak >= _GOOD_SHARE:
        return "little is left to gain but by computing less: freeze more, or a smaller image_size"
    if settings.platform != "cpu" and settings.compute_dtype == "float32":
        return "compute_dtype: bfloat16 is faster there" if settings.trains else "a larger evaluate.batch_size may help"
    if settings.platform == "cpu":
        return "small operations and memory take the rest: a larger batch_size may help, and freezing computes less"
    return "a larger batch_size may use more of it"
