"""How fast a recipe runs on this machine, stage by stage, and what bounds it. Nothing is trained or saved."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import jax

from finetune.data.placeholders import placeholder_splits
from finetune.data.splits import class_names_of
from finetune.data.workers import usable_cpus
from finetune.errors import DataError, RecipeError
from finetune.recipe import Recipe
from finetune.recipe.heads import LinearProbeStage
from finetune.report.bottleneck import Settings, Speeds, find_bottleneck
from finetune.report.devices import Peak, peak_of
from finetune.report.stage_programs import MADE_AHEAD, Program, StagePrograms
from finetune.report.stopwatch import compiling_anew, time_batches, time_steps
from finetune.run.progress import Progress
from finetune.run.setup import RunSetup, prepare_run
from finetune.training.flops import count_flops
from finetune.training.memory import memory_of

STEPS = 10  # timed ones of each stage
_STEP_SECONDS, _INPUT_SECONDS, _FED_SECONDS = 10.0, 3.0, 5.0  # for the steps, the loader, and both, of a stage
_CLASSES = 10  # of a recipe that does not tell, where its data are not there


def bench_recipe(
    recipe: Recipe,
    *,
    synthetic: bool = False,
    steps: int | None = None,
    data: Any = None,
    allow_local_code: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measures each stage of a recipe on this machine, for about 20 seconds besides compilation.

    Args:
        synthetic: random images on the device instead of the recipe's, which may be missing.
        steps: timed ones of each stage; by default ten, or fewer where they would take over ten seconds.
        data: the datasets, for ``source: memory``.
        allow_local_code: import the module of your own that the recipe names, if it does.
        quiet: print nothing.

    Returns:
        Plain JSON values: ``device``, ``load_seconds`` and ``stages``, each with ``compile_seconds``,
        ``first_step_seconds`` (from the stage's beginning), ``step_seconds`` (median, fastest, slowest, dispatch),
        ``images_per_second`` of the steps alone, ``input_images_per_second`` of the loader alone,
        ``fed_images_per_second`` of both together, ``flops`` of a step, ``flops_per_second``, ``peak`` and
        ``share_of_peak``, ``memory`` (bytes and who says so), ``bound`` and ``advice``. A stage that fits a head, or
        whose frozen part is computed once, has the same of the ``extraction`` of its features.

    Raises:
        FinetuneError: anything that would stop the run before its first step.
    """
    if steps is not None and steps < 1:
        raise RecipeError(f"steps: at least 1 is timed; received {steps}")
    began = time.perf_counter()
    with Progress(quiet) as display, compiling_anew():
        with display.busy("loading"):
            setup = _prepare(recipe, synthetic, data, allow_local_code, display)
        loaded = time.perf_counter() - began
        bench = _Bench(setup, synthetic, steps, display)
        stages = []
        for index, stage in enumerate(recipe.stages):
            with display.busy(f"{stage.name}: measuring"):
                stages.append(bench.stage(index))
    return {
        "name": recipe.name,
        "backbone": recipe.backbone.origin,
        "synthetic": synthetic,
        "device": {"kind": bench.device.device_kind, "platform": bench.device.platform, "count": bench.devices},
        "load_seconds": loaded,
        "stages": stages,
    }


def _prepare(recipe: Recipe, synthetic: bool, data: Any, allow_local_code: bool, display: Progress) -> RunSetup:
    if not synthetic:
        return prepare_run(recipe, data=data, allow_local_code=allow_local_code, track=display.track)
    parts = {
        "data": recipe.data.model_copy(update={"cache_shortest_edge": None, "num_workers": 0}),
        "evaluate": recipe.evaluate.model_copy(update={"also": {}}),
    }
    names, batches = _class_names(recipe), [stage.batch_size for stage in recipe.train_stages.values()]
    several = _reads_several_labels(recipe)
    splits = placeholder_splits(max(1000, 2 * len(names), *batches), names, multi_label=several)
    return prepare_run(recipe.model_copy(update=parts), allow_local_code=allow_local_code, splits=splits)


def _class_names(recipe: Recipe) -> tuple[str, ...]:
    """Those of the data, or as many as the recipe tells of."""
    with suppress(DataError):
        return class_names_of(recipe.data)
    weights = [stage.class_weights for stage in recipe.stages if isinstance(stage, LinearProbeStage)]
    counts = [len(weight) for weight in weights if isinstance(weight, list)]
    return tuple(f"class {i}" for i in range(recipe.head.num_classes or max(counts, default=_CLASSES)))


def _reads_several_labels(recipe: Recipe) -> bool:
    stages = recipe.train_stages.values()
    metrics = [recipe.evaluate.metric, *(stage.early_stopping.metric for stage in stages if stage.early_stopping)]
    return "mean_average_precision" in metrics


class _Bench:
    """The measurements of a run's stages."""

    def __init__(self, setup: RunSetup, synthetic: bool, steps: int | None, display: Progress) -> None:
        self.setup, self._programs = setup, StagePrograms(setup, display, synthetic=synthetic)
        self._steps, self._limit = steps or STEPS, float("inf") if steps else _STEP_SECONDS
        self.device, self.devices = jax.local_devices()[0], int(setup.placement.mesh.size)
        self._peaks: dict[str, Peak] = {}

    def stage(self, index: int) -> dict[str, Any]:
        """The record of one stage."""
        stage = self.setup.recipe.stages[index]
        record: dict[str, Any] = {"name": stage.name, "type": stage.type}
        for program in self._programs.of(index):
            measured = self._measure(program)
            record |= measured if program.trains else {"extraction": measured}
        return record

    def _measure(self, program: Program) -> dict[str, Any]:
        start = time.perf_counter()
        traced = program.trace()
        lowered = traced.lower()
        compiled = lowered.compile()
        compile_seconds = time.perf_counter() - start
        step = program.make_step(compiled)
        jax.block_until_ready(step(None))
        first = time.perf_counter() - program.began
        times = time_steps(lambda: step(None), self._steps, self._limit)
        flops = count_flops(traced, lowered, compiled, self.devices)
        peak = self._peak(program.compute_dtype)
        input_rate, fed_rate = self._with_input(program, step)
        speeds = Speeds(
            device=program.images / times.median,
            input=input_rate,
            fed=fed_rate,
            dispatch=times.dispatch_share,
            share_of_peak=flops / times.median / (peak.flops * self._processors),
        )
        found = find_bottleneck(speeds, self._settings(program))
        return {
            "batch_size": program.images,
            "compute_dtype": program.compute_dtype,
            "compile_seconds": compile_seconds,
            "first_step_seconds": first,
            "step_seconds": times.to_json(),
            "images_per_second": speeds.device,
            "input_images_per_second": speeds.input,
            "fed_images_per_second": speeds.fed,
            "flops": flops,
            "flops_per_second": flops / times.median,
            "peak": {"flops_per_second": peak.flops, "format": peak.format, "source": peak.source},
            "share_of_peak": speeds.share_of_peak,
            "memory": self._memory(compiled),
            "bound": found.what,
            "advice": found.sentence,
        }

    def _peak(self, dtype: str) -> Peak:
        """Where it is measured, the best so far: other programs can only make it less."""
        now = peak_of(self.device.device_kind, self.device.platform, dtype)
        self._peaks[dtype] = max(now, self._peaks.get(dtype, now), key=lambda peak: peak.flops)
        return self._peaks[dtype]

    @property
    def _processors(self) -> int:
        """Devices that compute side by side; those of a CPU share it."""
        return 1 if self.device.platform == "cpu" else self.devices

    def _with_input(self, program: Program, step: Callable[[Any], Any]) -> tuple[float, float] | tuple[None, None]:
        """Images a second of the loader alone, and of the steps that it feeds; None without data."""
        if program.batches is None:
            return None, None
        with closing(program.batches()) as batches:
            alone = time_batches(lambda: next(batches), 3 * self._steps, _INPUT_SECONDS, MADE_AHEAD)
        return alone * program.images, program.fed_rate(step, self._steps, _FED_SECONDS)

    def _memory(self, compiled: Any) -> dict[str, Any]:
        """Peak bytes of a device: since this process began where the device counts them, else by XLA's analysis."""
        stats = self.device.memory_stats() or {}
        if peak := stats.get("peak_bytes_in_use"):
            return {"peak_bytes": int(peak), "source": "device"}
        return {"peak_bytes": memory_of(compiled)["peak"], "source": "XLA's analysis"}

    def _settings(self, program: Program) -> Settings:
        data, images = self.setup.recipe.data, self.setup.splits.train.images
        decodes = bool(len(images)) and isinstance(images[0], str | os.PathLike | Path | bytes)
        return Settings(
            self.device.platform,
            program.compute_dtype,
            data.num_workers,
            usable_cpus(),
            decodes=decodes,
            shrinks=data.cache_shortest_edge is not None,
            trains=program.trains,
        )
