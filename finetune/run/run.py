"""The whole story of a run: data, backbone, classifier, stages, evaluation, bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from finetune.checkpoint import RunCheckpoints
from finetune.data.augment import make_training_transform
from finetune.data.image_cache import cached
from finetune.data.image_scan import cache_folder, fingerprint
from finetune.data.labeled_images import Split
from finetune.data.loader import evaluation_batches, training_batches
from finetune.data.sources import is_path
from finetune.data.splits import Splits, load_splits
from finetune.errors import CheckpointError, DataError, Interrupted, RecipeError
from finetune.evaluation.metrics import evaluate
from finetune.evaluation.steps import make_eval_step, make_feature_step
from finetune.export.bundle import hash_variables, save_bundle
from finetune.images.grid import save_image_grid
from finetune.inference.predictor import Predictor, restore
from finetune.models.build import attach_head, open_backbone
from finetune.models.zero_shot import zero_shot_head
from finetune.optim.partitions import merge, paths_of, pick
from finetune.recipe import LinearProbeStage, ModuleConfig, Partition, Recipe, TrainStage
from finetune.report.data import leakage
from finetune.run.folder import RunFolder, about_run
from finetune.run.progress import Progress
from finetune.run.stages import ResumePoint, Snapshot, StageHooks, prepare_stage, stage_clock, train_stage
from finetune.run.weight_changes import hash_leaves, measure_change, unchanged
from finetune.signals import StopSignal
from finetune.training.linear_probe import fit_linear_probe
from finetune.training.loop import Log
from finetune.training.stage_trainer import ParameterPlan, StageTrainer

_SHOWN = 32  # training images in a picture
_ZERO_SHOT_SAMPLE = 256  # training images (without their labels) that set the zero-shot head's temperature


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, and what its ``summary.json`` says."""

    directory: Path
    summary: dict[str, Any]
    allow_local_code: bool = False

    def predictor(self) -> Predictor:
        """The run's model, ready to predict."""
        return restore(self.directory, allow_local_code=self.allow_local_code)


def run(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    data: Any = None,
    allow_local_code: bool = False,
) -> RunResult:
    """Runs a recipe from pretrained weights to a measured, saved classifier.

    Args:
        recipe: from :func:`load_recipe`.
        output: the run's folder; by default ``checkpoints/<name of the recipe>``.
        resume: go on from the newest saved state in the folder, or begin if there is none.
        overwrite: remove an earlier run in the folder first.
        quiet: print nothing.
        data: a ``datasets.Dataset``, or a mapping of split names to some, for a recipe with ``data.source: memory``.
        allow_local_code: import the module that ``backbone.module`` names, if it is not one of this toolkit's. That
            runs it: look at it first.

    Raises:
        FinetuneError: anything wrong with recipe, data, weights or folder; it says what.
    """
    recipe = _with_absolute_paths(recipe)
    folder = RunFolder(Path(output) if output is not None else Path("checkpoints") / recipe.name)
    if overwrite and resume:
        raise CheckpointError("--overwrite starts anew and --resume goes on: give one of them")
    with Progress(quiet) as progress, StopSignal() as signal:
        work = _Run(recipe, folder, progress, signal, data, allow_local_code)
        goes_on = resume and folder.holds_run()
        if goes_on:
            folder.check_same(recipe, work.backbone_sha256, work.splits.sha256)
            if summary := folder.summary():
                progress.say(f"{folder.directory}: already finished")
                return RunResult(folder.directory, summary, allow_local_code)
        else:
            if overwrite:
                folder.clear()  # only now that recipe, data and weights have been found good
            folder.start(recipe, about_run(recipe, work.backbone_sha256, work.splits.sha256))
            if work.splits.skipped:
                folder.list_skipped(work.splits.skipped)
        with RunCheckpoints(folder.state) as checkpoints:
            work.go(checkpoints)
        return RunResult(folder.directory, work.finish(), allow_local_code)


def check_class_count(recipe: Recipe, splits: Splits) -> None:
    """Raises DataError where the recipe's count of classes is not that of the data."""
    wanted, found = recipe.head.num_classes, len(splits.class_names)
    if wanted is not None and wanted != found:
        raise DataError(
            f"head.num_classes: {wanted}, but {recipe.data.source} has {found} classes: "
            f"{', '.join(splits.class_names[:10])}{' ...' if found > 10 else ''}; correct it or leave it out"
        )


def check_label_kind(recipe: Recipe, splits: Splits) -> None:
    """Raises RecipeError for what images with several labels each cannot be used for."""
    if not splits.multi_label:
        return
    hint = "images here have several labels each"
    if recipe.head.init == "zero_shot":
        raise RecipeError(f"head.init: {hint}: a zero-shot head chooses one; use zeros")
    for i, stage in enumerate(recipe.stages):
        if isinstance(stage, LinearProbeStage):
            raise RecipeError(f"stages.{i}: {hint}: the probe chooses one; use a training stage with loss: sigmoid")
        if stage.loss.name != "binary_cross_entropy":
            raise RecipeError(f"stages.{i}.loss: {hint}: {stage.loss.name} chooses one; use loss: sigmoid")


class _Run:
    """A run under way. What it has reached is in ``variables`` and ``results``."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        progress: Progress,
        signal: StopSignal,
        data: Any,
        allow_local_code: bool,
    ) -> None:
        self.recipe, self.folder, self.progress, self.signal = recipe, folder, progress, signal
        self.seconds: dict[str, float] = {}
        self.results: list[dict[str, Any]] = []
        self.weight_change: dict[str, Any] = {}  # by stage, by partition
        self.earlier: tuple[Any, list[Partition]] | None = None  # optimizer state of the stage before
        with self._timed("load"):
            self.backbone = open_backbone(recipe.backbone, seed=recipe.seed, allow_local_code=allow_local_code)
            self.splits = load_splits(recipe.data, recipe.seed, data)
            check_class_count(recipe, self.splits)
            check_label_kind(recipe, self.splits)
            self.train = self._training_images()
            self.spec = self.backbone.image_spec
            classes = len(self.splits.class_names)
            self.classifier, self.variables = attach_head(self.backbone, recipe.head, classes, seed=recipe.seed)
            self.backbone_sha256 = hash_variables(self.backbone.variables)
            self.frozen_sha256 = hash_leaves(self._still(self.variables))
            for index, stage in enumerate(recipe.stages):
                if isinstance(stage, TrainStage):  # what cannot work in the last stage is told before the first
                    jax.eval_shape(self._prepare(stage, index).init_state)
            self.eval_step = make_eval_step(self.classifier, self.spec)
            self.lengths = [
                stage_clock(s, self.splits.train).total_steps if isinstance(s, TrainStage) else 1 for s in recipe.stages
            ]
        sizes = f"{len(self.splits.train)} training and {len(self.splits.test)} test images"
        progress.say(f"{recipe.name}: {sizes}, {len(self.splits.class_names)} classes, {recipe.backbone.origin}")
        if self.splits.skipped:
            progress.say(f"{len(self.splits.skipped)} broken images are left out: see skipped_images.txt")
        if leaks := leakage(self.splits):
            progress.say(leaks)

    def go(self, checkpoints: RunCheckpoints) -> None:
        """Every stage that is not done yet."""
        self.checkpoints = checkpoints
        first, position = self._restore()
        self._stop_if_asked("before the first stage")
        if position is None and first == 0 and self.recipe.head.init == "zero_shot":
            self._zero_shot()
        for index in range(first, len(self.recipe.stages)):
            stage = self.recipe.stages[index]
            with self._timed(stage.name):
                if isinstance(stage, LinearProbeStage):
                    self._probe(stage)
                else:
                    self._train(stage, index, position)
            position = None
            self._measure(stage.name)
            self._save(index, sum(self.lengths[: index + 1]), self.variables)
            if index == len(self.recipe.stages) - 1:
                break  # finish() writes the model
            self._save_bundle()
            self._stop_if_asked(f"at the end of stage {stage.name!r}")
        checkpoints.wait()

    def finish(self) -> dict[str, Any]:
        """Writes and gives the summary."""
        frozen = unchanged(self.frozen_sha256, hash_leaves(self._still(self.variables)))
        summary = {
            "name": self.recipe.name,
            "results": self.results,
            "weights_sha256": self._save_bundle(),
            "frozen_unchanged": not frozen["changed"],
            "frozen": frozen,
            "weight_change": self.weight_change,
            "skipped_images": {name: self.splits.skipped_from(name) for name in self.splits.named()},
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }
        self.folder.write_summary(summary)
        return summary

    def _zero_shot(self) -> None:
        with self._timed("zero_shot"):
            count = len(self.splits.train)
            sample = self.splits.train.take(np.arange(0, count, max(1, count // _ZERO_SHOT_SAMPLE)))
            kernel = zero_shot_head(
                self.backbone, self.splits.class_names, self.recipe.head.templates, self._features(sample)
            )
            self._set_head(kernel, self.variables["params"]["head"]["bias"])
        self._measure("zero_shot")

    def _probe(self, stage: LinearProbeStage) -> None:
        self.progress.say(f"{stage.name}: logistic regression on {len(self.splits.train)} feature vectors")
        features = self._features(self.splits.train)
        kernel, bias, l2 = fit_linear_probe(
            features, self.splits.train.labels, len(self.splits.class_names), stage.l2, seed=self.recipe.seed
        )
        self._set_head(kernel, bias)
        self.folder.log({"stage": stage.name, "split": "train", "l2": l2})

    def _train(self, stage: TrainStage, index: int, position: ResumePoint | None) -> None:
        base = sum(self.lengths[:index])

        def save(saved: Snapshot) -> None:
            self._save(index, base + saved.step, saved.variables, within=saved)

        def show(log: Log, rate: float) -> None:
            self.progress.advance(log.step, log.loss, log.accuracy, rate, log.images_per_second)

        self.progress.stage(stage.name, self.lengths[index], position.step if position else 0)
        hooks = StageHooks(
            validate=self._validate,
            save=save,
            show=lambda batch: self._show(training, batch, stage.name),
            load=lambda step: merge(self.variables, self.checkpoints.variables(base + step)),
            log=self.folder.log,
            progress=show,
        )
        if stage.frozen_dtype != "float32":
            self._free_device()
        training = self._prepare(stage, index)
        try:
            trained = train_stage(
                training,
                self._batches(stage, index),
                hooks=hooks,
                signal=self.signal,
                position=position,
                earlier=self._earlier(index) if position is None else None,
            )
        except Interrupted as stop:
            self._stop(f"{stop} of stage {stage.name!r}", stop.signal)
        self.variables = trained.variables
        self.earlier = (trained.opt_state, stage.partitions) if self._keeps(index + 1) else None
        if trained.step != self.lengths[index]:
            self.progress.say(f"{stage.name}: kept step {trained.step}, the best on validation")
        pretrained = self.backbone.variables["params"]
        self.weight_change[stage.name] = measure_change(self.variables["params"], pretrained, training.division.labels)

    def _prepare(self, stage: TrainStage, index: int) -> StageTrainer:
        return prepare_stage(
            stage,
            self.classifier,
            self.variables,
            self.splits.train,
            self.spec,
            seed=self.recipe.seed + index,
            pretrained=self.backbone.variables["params"],
        )

    def _training_images(self) -> Split:
        """The training split; its images from the cache, where the recipe asks for one."""
        train, size = self.splits.train, self.recipe.data.cache_shortest_edge
        if size is None or (key := fingerprint(train.images)) is None:
            return train
        return cached(train, size, cache_folder(), key)

    def _show(self, training: StageTrainer, batch: Any, name: str) -> None:
        """Writes a picture of a batch as the model sees it."""
        seen, labels = jax.device_get((training.preview(batch)[:_SHOWN], batch["label"][:_SHOWN]))
        names = self.splits.class_names
        sets = labels if labels.ndim == 2 else np.eye(len(names))[labels]
        captions = [", ".join(names[i] for i in np.flatnonzero(row)) for row in sets]
        save_image_grid(self.folder.figures / f"{name}_batch.png", seen, captions)

    def _batches(self, stage: TrainStage, index: int) -> Any:
        return training_batches(
            self.train,
            make_training_transform(stage.augment, self.spec),
            stage.batch_size,
            seed=self.recipe.seed + index,
            num_workers=self.recipe.data.num_workers,
            balanced=self.recipe.data.sampling == "balanced",
            shard=(jax.process_index(), jax.process_count()),
        )

    def _free_device(self) -> None:
        """Keeps the weights in the host's memory, so that the device holds no more than the stage puts there."""
        self.variables = jax.device_get(self.variables)
        variables = jax.device_get(self.backbone.variables)
        self.backbone = replace(self.backbone, variables=variables, text=None)  # no zero-shot head comes any more

    def _keeps(self, index: int) -> bool:
        """Whether stage ``index`` goes on with the optimizer state of the one before."""
        stage = self.recipe.stages[index] if index < len(self.recipe.stages) else None
        return isinstance(stage, TrainStage) and stage.carry_optimizer_state

    def _earlier(self, index: int) -> tuple[Any, list[Partition]] | None:
        """What the stage before left, from memory or, after a resume, from disk."""
        if not self._keeps(index) or self.earlier is not None:
            return self.earlier
        before = self.recipe.stages[index - 1]
        assert isinstance(before, TrainStage)  # the recipe checks it
        like = {"opt_state": self._prepare(before, index - 1).init_state().opt_state}
        return self.checkpoints.state(self.checkpoints.steps()[-1], like)["opt_state"], before.partitions

    def _stop_if_asked(self, when: str) -> None:
        if self.signal.received:
            self._stop(f"{self.signal.received.name} {when}", self.signal.received)

    def _stop(self, when: str, signal: int) -> NoReturn:
        self.checkpoints.wait()
        raise Interrupted(f"{self.folder.directory}: {when}; saved: continue with --resume", signal) from None

    def _validate(self, variables: Any) -> tuple[float, dict[str, Any]] | None:
        split = self.splits.validation
        if split is None:
            return None
        found = evaluate(self.eval_step, variables, split, self.spec, self.recipe.evaluate.batch_size)
        return found.score, found.to_json()

    def _measure(self, name: str) -> None:
        """Appends the test result of the present variables."""
        found = evaluate(self.eval_step, self.variables, self.splits.test, self.spec, self.recipe.evaluate.batch_size)
        result = {"name": name, "split": "test", **found.to_json()}
        self.results.append(result)
        self.folder.log({"stage": name, **result})
        self.progress.say(f"{name}: test accuracy {found.accuracy:.4f} on {found.n} images")

    def _features(self, split: Split) -> np.ndarray:
        step = self._feature_step
        rows = []
        for batch in evaluation_batches(split, self.spec, self.recipe.evaluate.batch_size):
            features = step(self.variables, jax.device_put(batch["image"]))
            rows.append(np.asarray(features)[batch["weight"] > 0])
        return np.concatenate(rows)

    @cached_property
    def _feature_step(self) -> Any:
        return make_feature_step(self.classifier, self.spec)

    def _set_head(self, kernel: jax.Array, bias: jax.Array) -> None:
        self.variables = merge(self.variables, {"params": {"head": {"kernel": kernel, "bias": bias}}})

    def _save(self, index: int, step: int, variables: Any, within: Snapshot | None = None) -> None:
        """The run at a step counted over all stages: within stage ``index``, or after it."""
        progress = {
            "stage": index,
            "done": within is None,
            "stage_step": within.step if within else None,
            "loader": within.loader if within else None,
            "best": within.best if within else None,
            "results": self.results,
            "weight_change": self.weight_change,
            "seconds": self.seconds,
            "log_lines": self.folder.log_lines(),
        }
        state = within.state if within else None
        if within is None and self._keeps(index + 1) and self.earlier:
            state = {"opt_state": self.earlier[0]}
        score = None if within is None or within.score is None else 2 * index + within.score
        self.checkpoints.save(step, pick(variables, self._changing), state, progress, score)

    def _restore(self) -> tuple[int, ResumePoint | None]:
        """(first stage to run, where in it), with variables and results as they were."""
        steps = self.checkpoints.steps()
        if not steps:
            self.folder.cut_log(0)
            return 0, None
        newest = steps[-1]
        saved = self.checkpoints.progress(newest)
        self.variables = merge(self.variables, self.checkpoints.variables(newest))
        self.results, self.weight_change = saved["results"], saved["weight_change"]
        self.seconds = {**saved["seconds"], "load": self.seconds["load"]}
        self.folder.cut_log(saved["log_lines"])
        if saved["done"]:
            return saved["stage"] + 1, None
        self.progress.say(f"resuming at step {newest}")
        best = tuple(saved["best"]) if saved["best"] else None
        fill = lambda like: self.checkpoints.state(newest, like)  # noqa: E731
        return saved["stage"], ResumePoint(saved["stage_step"], fill, saved["loader"], best)

    def _still(self, variables: Any) -> Any:
        """The parameters and statistics that no stage changes."""
        return pick(variables, set(paths_of(variables)) - self._changing)

    @cached_property
    def _changing(self) -> set[str]:
        """``collection/path`` of all that some stage changes; the head is always there."""
        paths = paths_of(self.variables)
        changing = {path for path in paths if path.startswith("params/head/")}
        for stage in self.recipe.stages:
            if isinstance(stage, TrainStage):
                division = ParameterPlan.of(self.variables, stage.partitions)
                changing |= {f"params/{path}" for path in division.learning}
                changing |= {path for path in paths if not path.startswith("params/") and not division.holds(path)}
        return changing

    def _save_bundle(self) -> str:
        return save_bundle(
            self.folder.model,
            self.classifier,
            self.variables,
            backbone=self.backbone,
            class_names=self.splits.class_names,
            multi_label=self.splits.multi_label,
        )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """So that the saved recipe means the same from any folder."""

    def absolute(source: str) -> str:
        return str(Path(source).expanduser().absolute()) if is_path(source) else source

    def part(config: Any, key: str) -> Any:
        source = getattr(config, key)
        return config if source is None else config.model_copy(update={key: absolute(source)})

    key = "weights" if isinstance(recipe.backbone, ModuleConfig) else "source"
    parts = {"backbone": part(recipe.backbone, key), "data": part(recipe.data, "source")}
    return recipe.model_copy(update=parts)
