"""A stage of gradient descent within a run: training's events, and what is logged, validated and saved at each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from finetune.distributed.processes import any_process, is_primary
from finetune.errors import CheckpointError, Interrupted, listed
from finetune.images.fonts import font_for
from finetune.images.grid import save_image_grid
from finetune.models.depth import depth_order_of
from finetune.optim.transfer_state import transfer_state
from finetune.recipe import Partition, TrainStage
from finetune.run.epochs import EpochMeter
from finetune.run.features import Views
from finetune.run.out_of_memory import memory_explained
from finetune.run.resume import Best, Patience, ResumePoint, Snapshot
from finetune.run.save_clock import SaveClock
from finetune.run.session import RunSession
from finetune.run.votes import Votes
from finetune.run.weight_changes import layers_of, measure_change
from finetune.training.loop import Checkpoint, Evaluate, Event, Finished, FirstBatch, Logged, fit
from finetune.training.stage_trainer import StageTrainer
from finetune.training.state import TrainState
from finetune.trees import fetch, merge

_IMAGES_SHOWN = 32  # training images in a figure


class TrainStageRun:
    """One stage of gradient descent, from its beginning or from where it was interrupted."""

    def __init__(self, session: RunSession, stage: TrainStage, index: int) -> None:
        self.session, self.stage, self.index = session, stage, index
        self.trainer: StageTrainer = session.setup.trainer(index, session.variables)
        self.total = self.trainer.length.total_steps
        self.epoch = self.trainer.length.steps_per_epoch or self.total
        self.batches = self._batches()
        point = session.progress.point
        self.best = point.best if point else None
        self.patience = point.patience if point else None
        self.meter = EpochMeter(stage.name, self.epoch, self.total)
        self.clock = SaveClock(session.setup.recipe.save.every, self.epoch)
        self._ended: tuple[TrainState, ResumePoint] | None = None

    def _batches(self) -> Any:
        """Images, or what is kept of them where the frozen part is computed once."""
        session, stage = self.session, self.stage
        decision = session.setup.decide_cache(self.index, self.trainer)
        if decision.reason:
            session.display.say(f"{stage.name}: {decision.reason}")
        session.log({**self._where(0, "features"), "frozen_cache": decision.to_json()})
        if not decision.use:
            return session.setup.batches(self.index)
        assert decision.extractor is not None
        seed = session.setup.recipe.seed + self.index
        views = Views(stage.frozen_cache.views, stage.augment, seed) if stage.augments_on_host else None
        try:
            store = session.features.store(decision.extractor, session.setup.train, stage.name, views)
        except CheckpointError as error:  # no room after all
            session.display.say(f"{error}; trained from images")
            return session.setup.batches(self.index)
        session.evaluate_from_features(frozenset(self.trainer.plan.changes(session.variables)))
        return session.setup.kept_batches(self.index, store)

    def run(self) -> float | None:
        """Trains, and leaves the variables of the best step in the session; gives their validation score.

        Raises:
            Interrupted: a signal came; the state is saved.
            Diverged: loss, gradients or weights are no longer finite.
        """
        session, resumed = self.session, self.session.progress.point
        step = resumed.step if resumed else 0
        with memory_explained(self.trainer, session.setup.spec):
            state = self._first_state()
        session.display.stage(self.stage.name, self.total, step)
        loader, score = self.batches.get_state(), None
        for event in () if self._out_of_patience() else self._events(state):
            match event:
                case FirstBatch():
                    if resumed is None:
                        self._save_figure(event)
                case Logged():
                    self._log(event)
                case Evaluate():
                    step, state, loader = event.step, event.state, event.loader
                    score = self._validate(event)
                    if self._out_of_patience():
                        break
                case Checkpoint():
                    self._save(event, score)
                    score = None
                case Finished():
                    step, state = event.step, event.state
        if step < self.total and not self._out_of_patience():
            session.signal.check(f"at step {step} of {self.total} of stage {self.stage.name!r}")  # agreed on
        self._ended = state, self._point(step, loader)
        self._end(state, step)
        return self.best.score if self.best else None

    def _events(self, state: TrainState) -> Iterator[Event]:
        session, resumed = self.session, self.session.progress.point
        votes = Votes(session.signal, self.clock, session.checkpoints)
        with memory_explained(self.trainer, session.setup.spec):
            yield from fit(
                self.trainer,
                state,
                self.batches,
                log_every=max(1, min(50, self.epoch)),
                should_stop=votes.should_stop,
                should_save=votes.should_save,
                evaluate_first=resumed is not None and resumed.unevaluated,
            )

    def save_trained(self) -> None:
        """Saves that all has been trained, and nothing of it measured."""
        assert self._ended is not None
        state, point = self._ended
        self._save_at(state, point)

    def _first_state(self) -> TrainState:
        """Fresh, or as it was saved within the stage, or with the optimizer state of the stage before."""
        session, trainer = self.session, self.trainer
        state, point = trainer.init_state(), session.progress.point
        if point is not None:
            self._go_to(point)
            self.meter.resume(point.meter)
            step = session.setup.first_step(self.index) + point.step
            return trainer.resume(state, session.checkpoints.state(step, trainer.resumable(state)))
        if not self._carries_into(self.index):
            return state
        opt_state, partitions = self._opt_state_before()
        opt_state, carried = transfer_state(opt_state, state.opt_state, partitions, self.stage.partitions)
        session.log({"stage": self.stage.name, "step": 0, "carried_optimizer_state": carried})
        return replace(state, opt_state=opt_state)

    def _go_to(self, point: ResumePoint) -> None:
        """Sets the batches' position; step by step where it was saved by batches of another kind, as when features are
        no longer kept."""
        if point.loader.keys() == self.batches.get_state().keys():
            self.batches.set_state(point.loader)
        else:
            for _ in range(point.step):
                next(self.batches)

    def _end(self, state: TrainState, step: int) -> None:
        """Keeps the variables of the best validation score, or those of the last step where nothing validates."""
        session, best = self.session, self.best
        if step < self.total and self.patience is not None:
            session.display.say(
                f"{self.stage.name}: stopped after {self.meter.epochs_at(step)}: "
                f"no improvement on validation in {self.patience.epochs} epochs"
            )
        if best is None or best.step == step:
            session.variables = self.trainer.variables(state)
        else:
            self._restore_best(best)
            session.display.say(f"{self.stage.name}: kept step {best.step}, the best on validation")
        session.carried = state.opt_state if self._carries_into(self.index + 1) else None
        pretrained = session.setup.backbone.variables["params"]
        labels, order = self.trainer.plan.labels, depth_order_of(session.setup.backbone.module)
        changes = measure_change(session.variables["params"], pretrained, labels, layers_of(labels, order))
        progress, name = session.progress, self.stage.name
        progress.weight_change[name], progress.layer_change[name] = changes

    def _restore_best(self, best: Best) -> None:
        session = self.session
        step = session.setup.first_step(self.index) + best.step
        session.variables = merge(session.variables, session.checkpoints.variables(step))

    def _validate(self, event: Evaluate) -> float | None:
        """The validation score; None without a validation split. Logs and shows the epoch.

        Raises:
            Diverged: the weights are not finite.
        """
        session = self.session
        if not self.trainer.is_finite(event.state):
            self._diverge(event.step, "the weights are not", list(self.trainer.schedules))
        split = session.setup.splits.validation
        evaluation, score, is_best = None, None, False
        if split is not None:
            variables = self.trainer.variables(event.state)
            try:
                evaluation = session.evaluate(variables, split, f"{self.stage.name}: validation")
            except Interrupted:
                self._save_at(event.state, replace(self._point(event.step, event.loader), unevaluated=True))
                raise
            session.log({**self._where(event.step, "validation"), **evaluation.to_json()})
            score = evaluation.score(session.metric)
            self._wait_for(evaluation.value(self._watched))
            is_best = self.best is None or score >= self.best.score
            if is_best:  # of equals the later, which is also the one that Orbax keeps
                self.best = Best(score, event.step)
        report = self.meter.report(event.step, evaluation, session.metric, best=is_best)
        session.log({**self._where(event.step, "epoch"), **report.to_json()})
        session.display.say(report.line())
        return score

    @property
    def _watched(self) -> str:
        """Name of early stopping's metric."""
        stopping = self.stage.early_stopping
        return (stopping.metric if stopping else None) or self.session.metric

    def _wait_for(self, value: float) -> None:
        """Counts the epochs without an improvement, for early stopping."""
        stopping, before = self.stage.early_stopping, self.patience
        if stopping is None:
            return
        gain = None if before is None else (before.value - value if self._watched == "loss" else value - before.value)
        if gain is None or gain > stopping.min_delta:
            self.patience = Patience(value, 0)
        elif before is not None:
            self.patience = Patience(before.value, before.epochs + 1)

    def _out_of_patience(self) -> bool:
        stopping, patience = self.stage.early_stopping, self.patience
        return stopping is not None and patience is not None and patience.epochs >= stopping.patience

    def _save(self, event: Checkpoint, score: float | None) -> None:
        """Not where an epoch that is not the best has ended and nothing is due."""
        is_best = self.best is not None and self.best.step == event.step
        if any_process(bool(is_best or self.clock.due(event.step) or self.session.signal.received)):
            self._save_at(event.state, self._point(event.step, event.loader), score)
            self.clock.start()

    def _save_at(self, state: TrainState, point: ResumePoint, score: float | None = None) -> None:
        trainer = self.trainer
        self.session.save_within(self.index, Snapshot(point, trainer.variables(state), trainer.resumable(state), score))

    def _point(self, step: int, loader: dict[str, Any]) -> ResumePoint:
        return ResumePoint(step, loader, self.best, self.patience, meter=self.meter.sums())

    @cached_property
    def _rates(self) -> Callable[[int], dict[str, jax.Array]]:
        """The learning rates at a step, by partition, in one program."""
        return jax.jit(lambda step: {name: schedule(step) for name, schedule in self.trainer.schedules.items()})

    def _log(self, event: Logged) -> None:
        rates = {name: float(rate) for name, rate in jax.device_get(self._rates(event.step - 1)).items()}
        measured = {"loss": event.loss, "accuracy": event.accuracy, "learning_rate": rates}
        speed = {"grad_norm": event.grad_norm, "images_per_second": round(event.images_per_second, 2)}
        self.session.log({**self._where(event.step, "train"), **measured, **speed})
        if event.not_finite:
            first = event.step - event.not_finite + 1
            names = [name for name, norm in event.grad_norm.items() if not np.isfinite(norm)]
            loss = "" if np.isfinite(event.loss) else f"the loss is {event.loss}, and "
            self._diverge(first, f"{loss}gradients are not", names)
        self.meter.add(event, max(rates.values()))
        self.session.display.advance(event.step, event.loss, event.accuracy, max(rates.values()))

    def _diverge(self, step: int, what: str, partitions: list[str]) -> None:
        """Ends the run with the best of what was finite as its model.

        Raises:
            Diverged: always.
        """
        session, name = self.session, self.stage.name
        states = [s for s in session.checkpoints.steps() if s > session.setup.first_step(self.index)]
        if self.best is not None:
            self._restore_best(self.best)
            session.measure(name, self.best.score)
        elif session.progress.kept is None and states:
            session.variables = merge(session.variables, session.checkpoints.variables(states[-1]))
            session.keep(name, None)
        session.log({**self._where(step, "train"), "diverged": what})
        rates = {rule.label: rule.learning_rate or 0.0 for rule in self.stage.trainable}
        shown = ", ".join(f"{label} (learning rate {rates[label]:g})" for label in partitions or rates)
        session.diverge(
            f"stage {name!r} diverged at step {step} of {self.total}: {what} finite in partition {shown}; "
            f"{self._likely_cause(step, rates)}"
        )

    def _likely_cause(self, step: int, rates: dict[str, float]) -> str:
        precise = self.stage.compute_dtype == "float32"
        if step == 1:
            cause = "no update had been made yet, so pretrained weights or images are the likely cause"
            return cause if precise else f"{cause}, or bfloat16: try compute_dtype: float32"
        highest = max(rates, key=lambda label: rates[label])
        cause = f"the learning rate of {highest} is likely too high: lower it, warm up, or set clip_grad_norm"
        return cause if precise else f"{cause}; or try compute_dtype: float32"

    def _save_figure(self, event: FirstBatch) -> None:
        """The stage's first images, as the model sees them."""
        batch = event.batch
        if "image" not in batch:
            batch = self.trainer.placement.put_batch(next(self.session.setup.batches(self.index)))
        images, labels = (fetch(rows)[:_IMAGES_SHOWN] for rows in (self.trainer.preview(batch), batch["label"]))
        if not is_primary():
            return
        names = self.session.setup.splits.class_names
        sets = labels if labels.ndim == 2 else np.eye(len(names))[labels]
        drawn = [name if font_for(name) else f"class {i}" for i, name in enumerate(names)]
        if undrawn := [name for name, caption in zip(names, drawn, strict=True) if name != caption]:
            session = self.session
            session.display.say(f"no font here has the characters of {listed(undrawn)}: pictures show their numbers")
        captions = [", ".join(drawn[i] for i in np.flatnonzero(row)) for row in sets]
        save_image_grid(self.session.folder.figure(f"{self.stage.name}_batch"), images, captions)

    def _carries_into(self, index: int) -> bool:
        """Whether stage ``index`` goes on with the optimizer state of the one before."""
        stages = self.session.setup.recipe.stages
        stage = stages[index] if index < len(stages) else None
        return isinstance(stage, TrainStage) and stage.carry_optimizer_state

    def _opt_state_before(self) -> tuple[Any, list[Partition]]:
        """What the stage before left, in memory or on disk."""
        session = self.session
        before = session.setup.recipe.stages[self.index - 1]
        assert isinstance(before, TrainStage)
        if session.carried is not None:
            return session.carried, before.partitions
        like = session.setup.trainer(self.index - 1, session.variables).init_state().opt_state
        saved = session.checkpoints.state(session.checkpoints.steps()[-1], {"opt_state": like})
        return saved["opt_state"], before.partitions

    def _where(self, step: int, split: str) -> dict[str, Any]:
        """Where a log record stands."""
        return {"stage": self.stage.name, "step": step, "epoch": round(step / self.epoch, 4), "split": split}
