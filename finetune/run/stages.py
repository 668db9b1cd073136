"""One stage of gradient descent: partitions to optimizer, the loop, validation and saved states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from finetune.data.labeled_images import Split
from finetune.data.loader import steps_per_epoch
from finetune.errors import Interrupted
from finetune.images.spec import ImageSpec
from finetune.models.classifier import Classifier
from finetune.optim.schedules import StageLength
from finetune.optim.transfer_state import transfer_state
from finetune.recipe import Partition, TrainStage
from finetune.signals import StopSignal
from finetune.training.loop import Log, fit
from finetune.training.losses import class_weights
from finetune.training.stage_trainer import StageTrainer
from finetune.training.state import TrainState


@dataclass(frozen=True)
class Snapshot:
    """A moment within a stage: step, the classifier's variables as measured, and what else going on from there needs.

    ``score`` is that of validation at this step, ``best`` the highest so far with its step; None without validation.
    """

    step: int
    variables: Any
    state: dict[str, Any]
    loader: dict[str, Any]
    score: float | None
    best: tuple[float, int] | None


@dataclass(frozen=True)
class StageHooks:
    """What the stage asks of the run around it.

    Attributes:
        validate: variables -> (score, what to log of it), or None where there is no validation split.
        save: keeps a state on disk.
        show: is given the stage's first batch.
        load: step -> the variables that were saved there.
        log: one record for the metrics file; progress: the same, for the person watching.
    """

    validate: Callable[[Any], tuple[float, dict[str, Any]] | None]
    save: Callable[[Snapshot], None]
    show: Callable[[Any], None]
    load: Callable[[int], Any]
    log: Callable[[dict[str, Any]], None]
    progress: Callable[[Log, float], None]


@dataclass(frozen=True)
class ResumePoint:
    """Where to go on: ``fill`` gives what was saved as ``state``, in the structure of a tree; the rest is as in
    :class:`Saved`."""

    step: int
    fill: Callable[[dict[str, Any]], dict[str, Any]]
    loader: dict[str, Any]
    best: tuple[float, int] | None


@dataclass(frozen=True)
class StageResult:
    """A finished stage: the variables it chose and the step they are from; the optimizer's last state."""

    variables: Any
    step: int
    opt_state: Any


def stage_clock(stage: TrainStage, train: Split) -> StageLength:
    """How long a stage is. Steps are optimizer steps; an epoch is as many whole batches as there are."""
    per_epoch = steps_per_epoch(train, stage.batch_size)
    if stage.steps is not None:
        total = stage.steps
    elif stage.epochs is not None:
        total = stage.epochs * per_epoch
    else:
        total = -(-(stage.examples or 0) // stage.batch_size)
    return StageLength(total, per_epoch, stage.batch_size)


def prepare_stage(
    stage: TrainStage,
    classifier: Classifier,
    variables: Any,
    train: Split,
    spec: ImageSpec,
    *,
    seed: int,
    pretrained: Any = None,
) -> StageTrainer:
    """The stage's step and state for these training images."""
    return StageTrainer(
        stage,
        classifier,
        variables,
        spec,
        stage_clock(stage, train),
        seed=seed,
        class_weights=class_weights(stage.loss, train.labels, classifier.num_classes),
        pretrained=pretrained,
    )


def train_stage(
    training: StageTrainer,
    batches: Any,
    *,
    hooks: StageHooks,
    signal: StopSignal,
    position: ResumePoint | None = None,
    earlier: tuple[Any, list[Partition]] | None = None,
) -> StageResult:
    """Trains, and gives the variables of the best validation score (of the last step where nothing validates).

    Args:
        training: from :func:`prepare_stage`, with the variables before the stage (or as saved at ``position``).
        batches: from :func:`finetune.data.loader.training_batches`, at its beginning.
        signal: where it is received, the stage stops after the step under way.
        earlier: optimizer state and partitions of the stage before, to carry over.

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    stage, total = training.stage, training.clock.total_steps
    epoch = training.clock.steps_per_epoch or total
    state = training.init_state()
    best: tuple[float, int] | None = None
    if position is not None:
        state = training.resume(state, position.fill(training.resumable(state)))
        best = position.best
        batches.set_state(position.loader)
    elif earlier is not None and stage.carry_optimizer_state:
        opt_state, carried = transfer_state(earlier[0], state.opt_state, earlier[1], stage.partitions)
        state = replace(state, opt_state=opt_state)
        hooks.log({"stage": stage.name, "step": 0, "carried_optimizer_state": carried})

    def at(step: int, split: str) -> dict[str, Any]:
        return {"stage": stage.name, "step": step, "epoch": round(step / epoch, 4), "split": split}

    def on_log(log: Log) -> None:
        now = {name: float(rate(log.step - 1)) for name, rate in training.schedules.items()}
        measured = {"loss": log.loss, "accuracy": log.accuracy, "learning_rate": now}
        speed = {"grad_norm": log.grad_norm, "images_per_second": round(log.images_per_second, 2)}
        hooks.log({**at(log.step, "train"), **measured, **speed})
        hooks.progress(log, max(now.values()))

    def on_pause(state: TrainState, loader: dict[str, Any]) -> None:
        nonlocal best
        step = int(state.step)
        variables = training.variables(state)
        at_epoch = step % epoch == 0 or step == total
        score, found = (hooks.validate(variables) if at_epoch else None) or (None, {})
        if score is not None:
            hooks.log({**at(step, "validation"), **found})
            if best is None or score >= best[0]:  # of equals the later, which is also the one that Orbax keeps
                best = (score, step)
        if step < total:  # the end is saved by the run, with what it measured of the stage
            hooks.save(Snapshot(step, variables, training.resumable(state), loader, score, best))

    state = fit(
        training.step,
        state,
        training.frozen,
        batches,
        total_steps=total,
        log_every=max(1, min(50, epoch)),
        pause_every=epoch,
        on_log=on_log,
        on_pause=on_pause,
        on_first=hooks.show if position is None else None,
        stopping=lambda: signal.received is not None,
    )
    step = int(state.step)
    if step < total:
        assert signal.received is not None
        raise Interrupted(f"{signal.received.name} at step {step} of {total}", signal.received)
    if best is not None and best[1] != total:
        return StageResult(hooks.load(best[1]), best[1], state.opt_state)
    return StageResult(training.variables(state), total, state.opt_state)
