"""One stage of gradient descent: partitions to optimizer, the loop, validation and saved states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from finetune.data.image_spec import ImageSpec
from finetune.data.loader import steps_per_epoch, training_batches
from finetune.data.splits import Split
from finetune.errors import Interrupted
from finetune.models.classifier import Classifier
from finetune.optim.optimizer import build_optimizer, learning_rates
from finetune.optim.partitions import merge, split_frozen
from finetune.recipe import TrainStage
from finetune.training.loop import Log, fit
from finetune.training.signals import StopSignal
from finetune.training.state import TrainState
from finetune.training.step import make_train_step


@dataclass(frozen=True)
class Saved:
    """A moment within a stage: step, the classifier's variables, and all that going on from there needs.

    ``accuracy`` is that of validation at this step, ``best`` the highest so far with its step; None without validation.
    """

    step: int
    variables: Any
    state: TrainState
    loader: dict[str, Any]
    accuracy: float | None
    best: tuple[float, int] | None


@dataclass(frozen=True)
class StageHooks:
    """What the stage asks of the run around it.

    Attributes:
        validate: variables -> validation accuracy, or None where there is no validation split.
        save: keeps a state on disk.
        load: step -> the variables that were saved there.
        log: one record for the metrics file; progress: the same, for the person watching.
    """

    validate: Callable[[Any], float | None]
    save: Callable[[Saved], None]
    load: Callable[[int], Any]
    log: Callable[[dict[str, Any]], None]
    progress: Callable[[Log, float], None]


@dataclass(frozen=True)
class Position:
    """Where to go on: ``fill`` puts what was saved into a fresh TrainState; the rest is as in :class:`Saved`."""

    step: int
    fill: Callable[[TrainState], TrainState]
    loader: dict[str, Any]
    best: tuple[float, int] | None


def total_steps(stage: TrainStage, train: Split) -> int:
    per_epoch = steps_per_epoch(train, stage.batch_size)
    return stage.steps if stage.steps is not None else (stage.epochs or 0) * per_epoch


def train_stage(
    stage: TrainStage,
    classifier: Classifier,
    variables: Any,
    train: Split,
    spec: ImageSpec,
    *,
    seed: int,
    workers: int,
    hooks: StageHooks,
    signal: StopSignal,
    position: Position | None = None,
) -> tuple[Any, int]:
    """Trains, and gives the variables of the best validation accuracy (of the last step where nothing validates).

    Args:
        variables: the classifier's, before the stage (or as saved at ``position``).
        train: training images; ``spec`` says how they are prepared.
        seed: of data order and dropout.
        signal: where it is received, the stage stops after the step under way.

    Returns:
        (variables, the step they are from).

    Raises:
        Interrupted: a signal came; the state is saved.
    """
    total = total_steps(stage, train)
    epoch = steps_per_epoch(train, stage.batch_size)
    params, frozen = split_frozen(variables["params"], stage.partitions)
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    optimizer = build_optimizer(stage.partitions, variables["params"], total_steps=total)
    state = TrainState.create(params, collections, optimizer, jax.random.key(seed))
    batches = training_batches(train, spec, stage.batch_size, seed=seed, workers=workers)
    best: tuple[float, int] | None = None
    if position is not None:
        state, best = position.fill(state), position.best
        batches.set_state(position.loader)
    rates = learning_rates(stage.partitions, total)

    def on_log(log: Log) -> None:
        now = {name: float(rate(log.step - 1)) for name, rate in rates.items()}
        record = {"stage": stage.name, "step": log.step, "epoch": round(log.step / epoch, 4), "split": "train"}
        hooks.log(
            {
                **record,
                "loss": log.loss,
                "accuracy": log.accuracy,
                "learning_rate": now,
                "images_per_second": round(log.images_per_second, 2),
            }
        )
        hooks.progress(log, max(now.values()))

    def on_pause(state: TrainState, loader: dict[str, Any]) -> None:
        nonlocal best
        step = int(state.step)
        whole = {**state.collections, "params": merge(frozen, state.params)}
        at_epoch = step % epoch == 0 or step == total
        accuracy = hooks.validate(whole) if at_epoch else None
        if accuracy is not None:
            hooks.log({"stage": stage.name, "step": step, "split": "validation", "accuracy": accuracy})
            if best is None or accuracy >= best[0]:  # of equals the later, which is also the one that Orbax keeps
                best = (accuracy, step)
        if step < total:  # the end is saved by the run, with what it measured of the stage
            hooks.save(Saved(step, whole, state, loader, accuracy, best))

    state = fit(
        make_train_step(classifier, optimizer, spec),
        state,
        frozen,
        batches,
        total_steps=total,
        log_every=max(1, min(50, epoch)),
        pause_every=epoch,
        on_log=on_log,
        on_pause=on_pause,
        stopping=lambda: signal.received is not None,
    )
    step = int(state.step)
    if step < total:
        assert signal.received is not None
        raise Interrupted(f"{signal.received.name} at step {step} of {total}", signal.received)
    if best is not None and best[1] != total:
        return hooks.load(best[1]), best[1]
    return {**state.collections, "params": merge(frozen, state.params)}, total
