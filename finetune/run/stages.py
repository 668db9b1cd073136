"""The stages of a run under way, and what is measured, logged and saved around them."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, NoReturn

import jax
import numpy as np

from finetune.checkpoint import RunCheckpoints
from finetune.data.labeled_images import Split
from finetune.data.loader import evaluation_batches
from finetune.errors import Interrupted
from finetune.evaluation.metrics import evaluate
from finetune.evaluation.steps import make_eval_step, make_feature_step
from finetune.export.bundle import save_bundle
from finetune.images.grid import save_image_grid
from finetune.models.zero_shot import zero_shot_head
from finetune.optim.transfer_state import transfer_state
from finetune.recipe import LinearProbeStage, Partition, TrainStage
from finetune.run.folder import RunFolder
from finetune.run.progress import Progress
from finetune.run.resume import Best, ResumePoint, RunProgress, Snapshot
from finetune.run.setup import RunSetup
from finetune.run.weight_changes import compare_frozen, measure_change
from finetune.signals import StopSignal
from finetune.training.linear_probe import fit_linear_probe
from finetune.training.loop import Checkpoint, Evaluate, Finished, FirstBatch, Logged, fit
from finetune.training.stage_trainer import StageTrainer
from finetune.training.state import TrainState
from finetune.trees import Variables, merge, pick

_IMAGES_SHOWN = 32  # training images in a figure
_ZERO_SHOT_SAMPLE = 256  # training images (without their labels) that set the zero-shot head's temperature


class StageRunner:
    """Runs stage after stage.

    Attributes:
        variables: the classifier's, as far as the run is.
        progress: how far that is.
    """

    def __init__(
        self,
        setup: RunSetup,
        folder: RunFolder,
        checkpoints: RunCheckpoints,
        display: Progress,
        signal: StopSignal,
        progress: RunProgress,
    ) -> None:
        self.setup, self.folder, self.checkpoints = setup, folder, checkpoints
        self.display, self.signal, self.progress = display, signal, progress
        self.recipe = setup.recipe
        self.variables: Variables = setup.variables
        self._carried: tuple[Any, list[Partition]] | None = None  # optimizer state of the stage before

    def restore(self) -> None:
        """Goes to the newest saved state, if there is one."""
        steps = self.checkpoints.steps()
        if steps:
            saved = RunProgress.from_json(self.checkpoints.progress(steps[-1]))
            self.variables = merge(self.variables, self.checkpoints.variables(steps[-1]))
            self.progress = replace(saved, seconds=saved.seconds | self.progress.seconds)  # this time's loading
            if saved.point is not None:
                self.display.say(f"resuming at step {steps[-1]}")
        self.folder.cut_log(self.progress.log_lines)

    def zero_shot(self) -> None:
        """Makes the head of the class names, and measures it."""
        with self.progress.timed("zero_shot"):
            train, names = self.setup.splits.train, self.setup.splits.class_names
            sample = train.take(np.arange(0, len(train), max(1, len(train) // _ZERO_SHOT_SAMPLE)))
            kernel = zero_shot_head(self.setup.backbone, names, self.recipe.head.templates, self._features(sample))
            self._set_head(kernel, self.variables["params"]["head"]["bias"])
        self.measure("zero_shot")

    def run(self, index: int) -> None:
        """One stage, from its beginning or from where it was interrupted, with its test result.

        Raises:
            Interrupted: a signal came; the state is saved.
        """
        stage = self.recipe.stages[index]
        with self.progress.timed(stage.name):
            if isinstance(stage, LinearProbeStage):
                self._linear_probe(stage)
            else:
                self._train(stage, index)
        self.measure(stage.name)
        self._save_end(index)

    def measure(self, name: str) -> None:
        """Appends the test result of the present variables."""
        split, batch_size = self.setup.splits.test, self.recipe.evaluate.batch_size
        evaluation = evaluate(self._eval_step, self.variables, split, self.setup.spec, batch_size)
        result = {"name": name, "split": "test", **evaluation.to_json()}
        self.progress.results.append(result)
        self.folder.log({"stage": name, **result})
        metric = evaluation.metric.replace("_", " ")
        self.display.say(f"{name}: test {metric} {evaluation.score:.4f} on {evaluation.n} images")

    def save_model(self) -> str:
        """Writes the bundle; gives the hash of its weights."""
        return save_bundle(
            self.folder.model,
            self.setup.classifier,
            self.variables,
            backbone=self.setup.backbone,
            class_names=self.setup.splits.class_names,
            multi_label=self.setup.splits.multi_label,
        )

    def finish(self, frozen_sha256: dict[str, str]) -> dict[str, Any]:
        """Writes the model and the summary; gives the summary."""
        splits, frozen = self.setup.splits, compare_frozen(frozen_sha256, self.setup.hash_frozen(self.variables))
        summary = {
            "name": self.recipe.name,
            "results": self.progress.results,
            "weights_sha256": self.save_model(),
            "frozen_unchanged": not frozen["changed"],
            "frozen": frozen,
            "weight_change": self.progress.weight_change,
            "skipped_images": {name: splits.skipped_from(name) for name in splits.named()},
            "seconds": {name: round(value, 2) for name, value in self.progress.seconds.items()},
        }
        self.folder.write_summary(summary)
        return summary

    def stop_if_asked(self, when: str) -> None:
        if self.signal.received:
            self._stop(when)

    def _linear_probe(self, stage: LinearProbeStage) -> None:
        train = self.setup.splits.train
        self.display.say(f"{stage.name}: logistic regression on {len(train)} feature vectors")
        kernel, bias, l2 = fit_linear_probe(
            self._features(train), train.labels, len(self.setup.splits.class_names), stage.l2, seed=self.recipe.seed
        )
        self._set_head(kernel, bias)
        self.folder.log({"stage": stage.name, "split": "train", "l2": l2})

    def _train(self, stage: TrainStage, index: int) -> None:
        trainer, batches, point = (
            self.setup.trainer(index, self.variables),
            self.setup.batches(index),
            self.progress.point,
        )
        state = self._first_state(trainer, index, batches)
        epoch, total = trainer.length.steps_per_epoch or trainer.length.total_steps, trainer.length.total_steps
        best = point.best if point else None
        score: float | None = None
        step = 0
        self.display.stage(stage.name, total, point.step if point else 0)
        events = fit(
            trainer,
            state,
            batches,
            log_every=max(1, min(50, epoch)),
            should_stop=lambda: self.signal.received is not None,
        )
        for event in events:
            match event:
                case FirstBatch():
                    if point is None:
                        self._save_figure(trainer, event, stage.name)
                case Logged():
                    self._log(event, trainer)
                case Evaluate():
                    score = self._validate(event, trainer)
                    # of equals the later, which is also the one that Orbax keeps
                    if score is not None and (best is None or score >= best.score):
                        best = Best(score, event.step)
                case Checkpoint():
                    here = ResumePoint(event.step, event.loader, best)
                    snapshot = Snapshot(here, trainer.variables(event.state), trainer.resumable(event.state), score)
                    self._save_within(index, snapshot)
                    score = None
                case Finished():
                    step, state = event.step, event.state
        if step < total:
            self._stop(f"at step {step} of {total} of stage {stage.name!r}")
        self._end_training(trainer, state, index, best)

    def _first_state(self, trainer: StageTrainer, index: int, batches: Any) -> TrainState:
        """Fresh, or as it was saved within the stage, or with the optimizer state of the stage before."""
        state, point = trainer.init_state(), self.progress.point
        if point is not None:
            batches.set_state(point.loader)
            step = self.setup.first_step(index) + point.step
            return trainer.resume(state, self.checkpoints.state(step, trainer.resumable(state)))
        if not self._carries_into(index):
            return state
        opt_state, partitions = self._carried or self._saved_opt_state(index)
        opt_state, carried = transfer_state(opt_state, state.opt_state, partitions, trainer.stage.partitions)
        self.folder.log({"stage": trainer.stage.name, "step": 0, "carried_optimizer_state": carried})
        return replace(state, opt_state=opt_state)

    def _end_training(self, trainer: StageTrainer, state: TrainState, index: int, best: Best | None) -> None:
        """Keeps the variables of the best validation score, or those of the last step where nothing validates."""
        name, total = trainer.stage.name, trainer.length.total_steps
        if best is None or best.step == total:
            self.variables = trainer.variables(state)
        else:
            self.variables = merge(self.variables, self.checkpoints.variables(self.setup.first_step(index) + best.step))
            self.display.say(f"{name}: kept step {best.step}, the best on validation")
        self._carried = (state.opt_state, trainer.stage.partitions) if self._carries_into(index + 1) else None
        pretrained = self.setup.backbone.variables["params"]
        self.progress.weight_change[name] = measure_change(self.variables["params"], pretrained, trainer.plan.labels)

    def _validate(self, event: Evaluate, trainer: StageTrainer) -> float | None:
        """The validation score; None without a validation split."""
        split = self.setup.splits.validation
        if split is None:
            return None
        variables, batch_size = trainer.variables(event.state), self.recipe.evaluate.batch_size
        evaluation = evaluate(self._eval_step, variables, split, self.setup.spec, batch_size)
        self.folder.log({**_where(event.step, trainer, "validation"), **evaluation.to_json()})
        return evaluation.score

    def _log(self, event: Logged, trainer: StageTrainer) -> None:
        rates = {name: float(schedule(event.step - 1)) for name, schedule in trainer.schedules.items()}
        measured = {"loss": event.loss, "accuracy": event.accuracy, "learning_rate": rates}
        speed = {"grad_norm": event.grad_norm, "images_per_second": round(event.images_per_second, 2)}
        self.folder.log({**_where(event.step, trainer, "train"), **measured, **speed})
        self.display.advance(event.step, event.loss, event.accuracy, max(rates.values()), event.images_per_second)

    def _save_figure(self, trainer: StageTrainer, event: FirstBatch, name: str) -> None:
        """The stage's first images, as the model sees them."""
        images, labels = jax.device_get(
            (trainer.preview(event.batch)[:_IMAGES_SHOWN], event.batch["label"][:_IMAGES_SHOWN])
        )
        names = self.setup.splits.class_names
        sets = labels if labels.ndim == 2 else np.eye(len(names))[labels]
        captions = [", ".join(names[i] for i in np.flatnonzero(row)) for row in sets]
        save_image_grid(self.folder.figure(f"{name}_batch"), images, captions)

    def _save_within(self, index: int, snapshot: Snapshot) -> None:
        progress = self.progress.at(index, snapshot.point, self.folder.log_lines())
        score = None if snapshot.score is None else 2 * index + snapshot.score  # above those of earlier stages
        step = self.setup.first_step(index) + snapshot.point.step
        changing = pick(snapshot.variables, self.setup.changing)
        self.checkpoints.save(step, changing, snapshot.state, progress.to_json(), score)

    def _save_end(self, index: int) -> None:
        self.progress = self.progress.at(index, None, self.folder.log_lines())
        state = {"opt_state": self._carried[0]} if self._carried else None
        changing = pick(self.variables, self.setup.changing)
        self.checkpoints.save(self.setup.first_step(index + 1), changing, state, self.progress.to_json())

    def _carries_into(self, index: int) -> bool:
        """Whether stage ``index`` goes on with the optimizer state of the one before."""
        stage = self.recipe.stages[index] if index < len(self.recipe.stages) else None
        return isinstance(stage, TrainStage) and stage.carry_optimizer_state

    def _saved_opt_state(self, index: int) -> tuple[Any, list[Partition]]:
        """What the stage before left, from disk."""
        before = self.setup.trainer(index - 1, self.variables)
        saved = self.checkpoints.state(self.checkpoints.steps()[-1], {"opt_state": before.init_state().opt_state})
        return saved["opt_state"], before.stage.partitions

    def _features(self, split: Split) -> np.ndarray:
        """float32 [n, num_features] of every image."""
        variables, rows = jax.device_put(self.variables), []
        for batch in evaluation_batches(split, self.setup.spec, self.recipe.evaluate.batch_size):
            features = self._feature_step(variables, jax.device_put(batch["image"]))
            rows.append(np.asarray(features)[batch["weight"] > 0])
        return np.concatenate(rows)

    @cached_property
    def _eval_step(self) -> Any:
        return make_eval_step(self.setup.classifier, self.setup.spec)

    @cached_property
    def _feature_step(self) -> Any:
        return make_feature_step(self.setup.classifier, self.setup.spec)

    def _set_head(self, kernel: jax.Array, bias: jax.Array) -> None:
        self.variables = merge(self.variables, {"params": {"head": {"kernel": kernel, "bias": bias}}})

    def _stop(self, when: str) -> NoReturn:
        assert self.signal.received is not None
        self.checkpoints.wait()
        name = self.signal.received.name
        raise Interrupted(
            f"{self.folder.directory}: {name} {when}; saved: continue with --resume", self.signal.received
        ) from None


def _where(step: int, trainer: StageTrainer, split: str) -> dict[str, Any]:
    """Where a log record stands."""
    epoch = trainer.length.steps_per_epoch or trainer.length.total_steps
    return {"stage": trainer.stage.name, "step": step, "epoch": round(step / epoch, 4), "split": split}
