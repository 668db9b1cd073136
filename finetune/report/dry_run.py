"""A run up to its first steps: everything that is checked before training, and what the whole of it will take."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from finetune.compiled import keep_compiled_programs
from finetune.data.workers import check_workers
from finetune.distributed.processes import process_count
from finetune.errors import CheckpointError, MeshError
from finetune.evaluation.metrics import evaluate
from finetune.evaluation.steps import make_eval_step
from finetune.folder.run_folder import RunFolder
from finetune.foreign_errors import foreign_errors_translated
from finetune.recipe import Recipe, TrainStage
from finetune.report.stage_programs import Program, StagePrograms
from finetune.report.stopwatch import time_steps
from finetune.run.interpolation import SHARES, start_of_interpolation
from finetune.run.progress import Progress
from finetune.run.run import default_folder, with_absolute_paths
from finetune.run.setup import RunSetup, prepare_run
from finetune.trackers.open import open_trackers
from finetune.training.memory import device_memory, memory_of

_STEPS, _SECONDS = 5, 3.0  # timed ones of each program, and how long they may take


@foreign_errors_translated()
def dry_run(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    data: Any = None,
    allow_local_code: bool = False,
    verify: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Does all that a run does before it trains, then a few steps of each stage on its own images. Nothing is saved.

    Args:
        output: the run's folder, as of :func:`finetune.run`; it is looked at, and not written to.
        data: as of :func:`finetune.run`.
        allow_local_code: import the module of your own that the recipe names, if it does.
        verify: read every image again, whatever is cached.
        quiet: print nothing.

    Returns:
        Plain JSON values: ``lines`` that the run begins with; ``output``, its ``directory`` and the ``problem`` that a
        run would have with it (None for none); ``device`` with its ``memory_bytes``; ``stages``, each with its
        ``steps``, its ``partitions`` and, of its ``step`` and of the ``extraction`` of its features (None where it has
        none), the ``batch_size``, ``compile_seconds``, ``seconds_per_batch`` as the loader feeds it, the ``batches`` of
        the whole run, ``memory_bytes`` of a device and, of a step, ``loss`` of the first batch; ``evaluation``, how
        many images and how fast; ``seconds`` by what they go to, and their ``total``; and ``disk_bytes``: those of
        ``model``, ``states`` and ``features`` (in the cache), and what is ``free``.

    Raises:
        FinetuneError: anything that would stop the run before its first steps, or in one of them.
    """
    if process_count() > 1:
        raise MeshError("a dry run is for one process: leave --num-processes out")
    keep_compiled_programs()
    recipe = with_absolute_paths(recipe)
    folder = RunFolder(default_folder(recipe) if output is None else output)
    if recipe.data.num_workers:
        check_workers(recipe.data.num_workers)
    open_trackers(recipe.trackers)
    with Progress(quiet) as display:
        began = time.perf_counter()
        setup = prepare_run(recipe, data=data, allow_local_code=allow_local_code, track=display.track, verify=verify)
        load_seconds = time.perf_counter() - began
        trial = _Trial(setup, display)
        stages = [trial.stage(index) for index in range(len(recipe.stages))]
        evaluation = trial.evaluation(stages)
    return {
        "name": recipe.name,
        "lines": setup.describe(),
        "output": {"directory": str(folder.directory), "problem": _problem(folder)},
        "device": {
            "kind": jax.local_devices()[0].device_kind,
            "count": int(setup.placement.mesh.size),
            "memory_bytes": device_memory(),
        },
        "stages": stages,
        "evaluation": evaluation,
        "seconds": _seconds(load_seconds, stages, evaluation),
        "disk_bytes": {**trial.disk(), "free": _free(folder.directory)},
    }


def _problem(folder: RunFolder) -> str | None:
    """What a run would say of its folder."""
    try:
        folder.check_free()
    except CheckpointError as error:
        return str(error)
    return None


def _free(directory: Path) -> int:
    """Bytes on the disk of a folder that need not be there yet."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _seconds(load: float, stages: list[dict[str, Any]], evaluation: Mapping[str, Any]) -> dict[str, float]:
    """By what they go to; the fit of a head to its features is not among them."""

    def total(name: str) -> float:
        parts = [stage[name] for stage in stages if stage[name] is not None]
        return sum((part["seconds_per_batch"] * part["batches"] for part in parts), 0.0)

    parts = [stage[name] for stage in stages for name in ("extraction", "step") if stage[name] is not None]
    spent = {
        "load": load,
        "compile": sum((part["compile_seconds"] for part in parts), evaluation["compile_seconds"]),
        "features": total("extraction"),
        "train": total("step"),
        "evaluate": evaluation["images"] / evaluation["images_per_second"],
    }
    return {**spent, "total": sum(spent.values())}


class _Trial:
    """A few steps of everything that a run computes."""

    def __init__(self, setup: RunSetup, display: Progress) -> None:
        self._setup, self._display = setup, display
        self._programs = StagePrograms(setup, display)
        self._features = 0  # bytes
        splits, also = setup.splits, setup.also.values()
        self._validation = 0 if splits.validation is None else len(splits.validation)
        self._measured = self._validation + len(splits.test) + sum(len(images) for images in also)  # after a stage

    def stage(self, index: int) -> dict[str, Any]:
        """The record of a stage."""
        setup = self._setup
        stage, length = setup.recipe.stages[index], setup.lengths[index]
        record: dict[str, Any] = {
            "name": stage.name,
            "type": stage.type,
            "steps": length.total_steps,
            "partitions": setup.partitions.get(index),
            "extraction": None,
            "step": None,
        }
        with self._display.busy(f"{stage.name}: a few steps"):
            for program in self._programs.of(index):
                batches = length.total_steps
                if not program.trains:
                    images = self._extracted(index)
                    batches = -(-images // program.images)
                    self._features += images * program.kept_bytes
                record["step" if program.trains else "extraction"] = {**_try(program), "batches": batches}
        epochs = -(-length.total_steps // (length.steps_per_epoch or length.total_steps))
        of_images = record["extraction"] is None  # otherwise what is evaluated has been extracted
        record["evaluated_images"] = epochs * self._validation + self._measured if of_images else 0
        return record

    def _extracted(self, index: int) -> int:
        """Images whose features a stage reads, views of one counted apart."""
        stage = self._setup.recipe.stages[index]
        views = stage.kept_views if isinstance(stage, TrainStage) else 1
        return views * len(self._setup.train) + self._measured

    def evaluation(self, stages: list[dict[str, Any]]) -> dict[str, Any]:
        """How many images are evaluated in all, and how fast."""
        setup, size = self._setup, self._setup.recipe.evaluate.batch_size
        images = sum(stage["evaluated_images"] for stage in stages)
        if setup.recipe.head.classifies_from_the_start:
            images += self._measured
        if start_of_interpolation(setup) is not None:
            images += len(SHARES) * self._validation + self._measured
        few = setup.splits.test.take(np.arange(min(2 * size, len(setup.splits.test))))
        step = make_eval_step(setup.classifier, setup.spec, setup.placement)
        seconds = []
        for _ in range(2):  # the first time it is compiled
            began = time.perf_counter()
            evaluate(step, setup.variables, few, setup.spec, size, self._display.track, placement=setup.placement)
            seconds.append(time.perf_counter() - began)
        first, again = seconds
        rate = len(few) / again
        return {"images": images, "images_per_second": rate, "compile_seconds": max(0.0, first - again)}

    def disk(self) -> dict[str, int]:
        """Bytes that the run writes: the model, the states that are kept, and features in the cache."""
        setup, save = self._setup, self._setup.recipe.save
        states = [_bytes(setup.changed(setup.variables))]
        for index in setup.plans:
            trainer = setup.trainer(index, setup.untrained(index))
            resumable = jax.eval_shape(lambda trainer=trainer: trainer.resumable(trainer.init_state()))
            states.append(_bytes(setup.changed(setup.untrained(index))) + _bytes(resumable))
        kept = save.keep_last + (save.keep_best if self._validation else 0)
        return {"model": _bytes(setup.variables), "states": kept * max(states), "features": self._features}


def _try(program: Program) -> dict[str, Any]:
    """Compiles a program, and runs it on the recipe's images."""
    began = time.perf_counter()
    compiled = program.trace().lower().compile()
    compile_seconds = time.perf_counter() - began
    step = program.make_step(compiled)
    assert program.first is not None
    result = jax.block_until_ready(step(program.feed(program.first())))
    if program.batches is None:
        seconds = time_steps(lambda: step(None), _STEPS, _SECONDS).median
    else:
        seconds = program.images / program.fed_rate(step, _STEPS, _SECONDS)
    return {
        "batch_size": program.images,
        "compile_seconds": compile_seconds,
        "seconds_per_batch": seconds,
        "memory_bytes": memory_of(compiled)["peak"],
        **({"loss": float(result["loss"]) / float(result["count"])} if program.trains else {}),
    }


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
