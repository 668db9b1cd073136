"""How fast a recipe runs on this machine, stage by stage, and what bounds it. Nothing is trained or saved."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune.data.loader import evaluation_batches
from finetune.data.placeholders import placeholder_splits
from finetune.data.splits import class_names_of
from finetune.data.workers import usable_cpus
from finetune.errors import DataError, RecipeError
from finetune.recipe import Recipe, TrainStage
from finetune.recipe.heads import LinearProbeStage
from finetune.report.bottleneck import Settings, Speeds, find_bottleneck
from finetune.report.devices import Peak, peak_of
from finetune.report.flops import count_flops
from finetune.report.stopwatch import compiling_anew, time_batches, time_steps
from finetune.run.features import RunFeatures
from finetune.run.progress import Progress
from finetune.run.setup import RunSetup, prepare_run
from finetune.training.loop import AHEAD, Prefetcher

STEPS = 10  # timed ones of each stage
_STEP_SECONDS, _INPUT_SECONDS, _FED_SECONDS = 10.0, 3.0, 5.0  # for the steps, the loader, and both, of a stage
_MADE_AHEAD = 4  # batches that a loader may have ready
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


@dataclass(frozen=True)
class _Program:
    """A compiled program and what it takes to run it again and again.

    Attributes:
        images: of one step.
        step: starts one on a batch and gives what to wait for; None takes the batch that is there.
        began: when the work on it began, in seconds.
    """

    name: str
    traced: Any
    images: int
    compute_dtype: str
    make_step: Callable[[Any], Callable[[Any], Any]]  # of the compiled program
    batches: Callable[[], Iterator[Any]] | None
    prefetched: bool
    began: float


class _Bench:
    """The measurements of a run's stages."""

    def __init__(self, setup: RunSetup, synthetic: bool, steps: int | None, display: Progress) -> None:
        self.setup, self._synthetic = setup, synthetic
        self._steps, self._limit = steps or STEPS, float("inf") if steps else _STEP_SECONDS
        self.device, self.devices = jax.local_devices()[0], 1
        most = setup.recipe.evaluate.batch_size
        self._features = RunFeatures(setup.spec, most, display, lambda when: None)
        self._peak = cache(lambda dtype: peak_of(self.device.device_kind, self.device.platform, dtype))

    def stage(self, index: int) -> dict[str, Any]:
        stage, began = self.setup.recipe.stages[index], time.perf_counter()
        record: dict[str, Any] = {"name": stage.name, "type": stage.type}
        if not isinstance(stage, TrainStage):
            extractor = self._features.head_extractor(self.setup.classifier, self.setup.variables)
            return {**record, "extraction": self._measure(self._extraction(extractor, began), trains=False)}
        trainer = self.setup.trainer(index, self.setup.untrained(index))
        decision = self.setup.decide_cache(index, trainer)
        if decision.use:
            program = self._extraction(decision.extractor, began)
            record["extraction"] = self._measure(program, trains=False)
            began = time.perf_counter()
        kept = decision.extractor.specs if decision.use and decision.extractor else None
        return {**record, **self._measure(self._training(index, trainer, kept, began), trains=True)}

    def _training(self, index: int, trainer: Any, kept: Any, began: float) -> _Program:
        """The stage's step, on images or on what is kept of them."""
        setup, stage = self.setup, trainer.stage
        state, frozen = trainer.init_state(), trainer.frozen
        batch = jax.device_put(self._random_batch(stage.batch_size, kept))

        def make_step(compiled: Any) -> Callable[[Any], Any]:
            held = [state]

            def step(other: Any) -> Any:
                held[0], metrics = compiled(held[0], frozen, batch if other is None else other)
                return metrics

            return step

        batches = None if self._synthetic or kept else lambda: setup.batches(index)
        traced = trainer.step.trace(state, frozen, batch)
        return _Program(
            stage.name, traced, stage.batch_size, stage.compute_dtype, make_step, batches, prefetched=True, began=began
        )

    def _extraction(self, extractor: Any, began: float) -> _Program:
        """Of features, once for each image."""
        setup, size = self.setup, extractor.batch_size
        traced, weights = extractor.trace()
        images = jax.device_put(self._random_batch(size, None)["image"])

        def make_step(compiled: Any) -> Callable[[Any], Any]:
            return lambda other: compiled(weights, images if other is None else jax.device_put(other["image"]))

        def batches() -> Iterator[Any]:
            while True:
                yield from (batch for batch in evaluation_batches(setup.train, setup.spec, size))

        dtype = str(getattr(setup.classifier.backbone, "dtype", None) or "float32")
        few = len(setup.train) < size  # a batch of all images has another shape
        return _Program(
            "features",
            traced,
            size,
            "bfloat16" if "bfloat16" in dtype else "float32",
            make_step,
            None if self._synthetic or few else batches,
            prefetched=False,
            began=began,
        )

    def _random_batch(self, size: int, kept: Any) -> dict[str, Any]:
        rng, labels = np.random.default_rng(0), self.setup.splits.train.labels
        shown: dict[str, Any] = {"label": labels[rng.integers(0, len(labels), size)]}
        if kept is None:
            return {**shown, "image": rng.integers(0, 256, (size, *self.setup.spec.shape), dtype=np.uint8)}
        return {**shown, "kept": [rng.standard_normal((size, *row.shape)).astype(row.dtype) for row in kept]}

    def _measure(self, program: _Program, trains: bool) -> dict[str, Any]:
        start = time.perf_counter()
        lowered = program.traced.lower()
        compiled = lowered.compile()
        compile_seconds = time.perf_counter() - start
        step = program.make_step(compiled)
        jax.block_until_ready(step(None))
        first = time.perf_counter() - program.began
        times = time_steps(lambda: step(None), self._steps, self._limit)
        flops = count_flops(program.traced, lowered, compiled, self.devices)
        peak: Peak = self._peak(program.compute_dtype)
        rate = flops / times.median
        fed = self._with_input(program, step) if program.batches else (None, None)
        speeds = Speeds(
            device=program.images / times.median,
            input=fed[0],
            together=fed[1],
            dispatch=times.to_json()["dispatch"] / times.median,
            share_of_peak=rate / (peak.flops * self.devices),
        )
        found = find_bottleneck(speeds, self._settings(program.compute_dtype, trains))
        return {
            "batch_size": program.images,
            "compute_dtype": program.compute_dtype,
            "compile_seconds": compile_seconds,
            "first_step_seconds": first,
            "step_seconds": times.to_json(),
            "images_per_second": speeds.device,
            "input_images_per_second": speeds.input,
            "fed_images_per_second": speeds.together,
            "flops": flops,
            "flops_per_second": rate,
            "peak": {"flops_per_second": peak.flops, "format": peak.format, "source": peak.source},
            "share_of_peak": speeds.share_of_peak,
            "memory": self._memory(compiled),
            "bound": found.what,
            "advice": found.sentence,
        }

    def _with_input(self, program: _Program, step: Callable[[Any], Any]) -> tuple[float, float]:
        """Images a second of the loader alone, and of the steps that it feeds."""
        assert program.batches is not None
        with closing(program.batches()) as batches:  # type: ignore[type-var]
            alone = time_batches(lambda: next(batches), 3 * self._steps, _INPUT_SECONDS, _MADE_AHEAD)
        with closing(program.batches()) as batches:  # type: ignore[type-var]
            count = self._steps + _MADE_AHEAD + AHEAD
            queue = Prefetcher(batches, count) if program.prefetched else None  # type: ignore[arg-type]

            def take() -> Any:
                if queue is None:
                    return step(next(batches))
                result = step(queue.take()[0])
                queue.fill()
                return result

            fed = time_batches(take, self._steps, _FED_SECONDS, _MADE_AHEAD + AHEAD)
        return alone * program.images, fed * program.images

    def _memory(self, compiled: Any) -> dict[str, Any]:
        """Peak bytes of a device: since this process began where the device counts them, else by XLA's analysis."""
        stats = self.device.memory_stats() or {}
        if peak := stats.get("peak_bytes_in_use"):
            return {"peak_bytes": int(peak), "source": "device"}
        analysis = compiled.memory_analysis()
        beyond = max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
        peak = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + beyond
        return {"peak_bytes": int(peak), "source": "XLA's analysis"}

    def _settings(self, compute_dtype: str, trains: bool) -> Settings:
        data, images = self.setup.recipe.data, self.setup.splits.train.images
        decodes = bool(len(images)) and isinstance(images[0], str | os.PathLike | Path | bytes)
        return Settings(
            self.device.platform,
            compute_dtype,
            data.num_workers,
            usable_cpus(),
            decodes=decodes,
            cached_size=data.cache_shortest_edge is not None,
            trains=trains,
        )
