"""Which saved state a run goes on from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune.checkpoint import RunCheckpoints
from finetune.errors import CheckpointError
from finetune.export.bundle import verify_bundle
from finetune.folder.run_folder import RunFolder
from finetune.recipe import TrainStage
from finetune.run.continuation import (
    Continuation,
    describe_extension,
    find_state_to_extend,
    kept_model,
    record_continuation,
)
from finetune.run.predictions import Predictions
from finetune.run.progress import Progress
from finetune.run.resume import RunProgress
from finetune.run.setup import RunSetup, stage_length


def find_state(
    setup: RunSetup,
    folder: RunFolder,
    checkpoints: RunCheckpoints,
    display: Progress,
    continuation: Continuation | None,
) -> dict[str, Any] | None:
    """The newest state that is whole: its ``step`` and ``progress`` (JSON); None where there is none. Those that are
    damaged are named and removed, and the log is cut back to it.

    Args:
        continuation: with what a run that was there before goes on.

    Raises:
        CheckpointError: all are damaged, or none can be gone on from with longer stages.
    """
    states = _with_a_model(_whole(checkpoints, display), folder, checkpoints, display)
    if continuation is not None:
        if continuation.longer and states:
            states = _extend(continuation, states, setup, folder, checkpoints, display)
        record_continuation(folder, setup, continuation)
    newest = max(states, default=None)
    saved = RunProgress() if newest is None else _with_its_best(states[newest], states, setup, display)
    if not folder.metrics.cut(saved.log_lines, saved.log_sha256):
        display.say(f"{folder.metrics.file}: damaged: the log begins anew")
    return None if newest is None else {"step": newest, "progress": saved.to_json()}


def _whole(checkpoints: RunCheckpoints, display: Progress) -> dict[int, RunProgress]:
    """Saved step -> how far the run was there, without those that are damaged."""
    whole, problems = {}, []
    for step in checkpoints.steps():
        try:
            checkpoints.verify(step)
            whole[step] = RunProgress.from_json(checkpoints.progress(step))
        except CheckpointError as error:
            problems.append((step, str(error)))
    if problems and not whole:
        raise CheckpointError(f"{problems[-1][1]}; no state is whole: start anew with --overwrite")
    for step, problem in problems:
        display.say(f"{problem}; it is removed")
        checkpoints.delete(step)
    return whole


def _with_a_model(
    states: dict[int, RunProgress], folder: RunFolder, checkpoints: RunCheckpoints, display: Progress
) -> dict[int, RunProgress]:
    """Those up to the newest whose model is in the folder, or is still to be made.

    Raises:
        CheckpointError: it is damaged, and was made before all of them.
    """
    kept = states[max(states)].kept if states else None
    if kept is None:
        return states
    try:
        verify_bundle(folder.bundle)
        return states
    except CheckpointError as error:
        before = {step: saved for step, saved in states.items() if saved.kept != kept}
        if not before:
            raise CheckpointError(
                f"{error}; no state is from before it was made: restore it from a copy, or start anew with --overwrite"
            ) from None
        display.say(f"{error}; it is made again")
    for step in states.keys() - before.keys():
        checkpoints.delete(step)
    return before


def _extend(
    continuation: Continuation,
    states: dict[int, RunProgress],
    setup: RunSetup,
    folder: RunFolder,
    checkpoints: RunCheckpoints,
    display: Progress,
) -> dict[int, RunProgress]:
    """Goes back to the state that longer stages go on from; gives those up to it."""
    start, newest = find_state_to_extend(states, setup, continuation.longer), states[max(states)]
    saved = replace(states[start], kept=kept_model(folder, newest))
    if saved.kept is not None and saved.kept.score is not None and saved.kept.stage not in saved.names:
        index = continuation.longer[-1]
        old = continuation.before.stages[index]
        assert isinstance(old, TrainStage)
        mark = f" ({stage_length(old, setup.splits.train).total_steps} steps)"
        predictions = Predictions(folder.predictions, setup.splits.test)
        predictions.copy(saved.kept.stage, saved.kept.stage + mark, newest.names)
        saved = saved.with_kept_of(newest, mark)
    for index in continuation.longer:
        step = saved.point.step if saved.point is not None and index == saved.stage else 0
        display.say(describe_extension(setup, continuation.before, index, step))
    folder.forget_summary()
    for later in [step for step in states if step > start]:
        checkpoints.delete(later)
    return {step: states[step] for step in states if step < start} | {start: saved}


def _with_its_best(
    saved: RunProgress, states: dict[int, RunProgress], setup: RunSetup, display: Progress
) -> RunProgress:
    """Without the best step so far where that is damaged."""
    point = saved.point
    if point is None or point.best is None:
        return saved
    best = setup.first_step(saved.stage) + point.best.step
    if best in states:
        return saved
    display.say(f"step {best}, the best so far, is damaged: it is no longer the one to improve on")
    return replace(saved, point=replace(point, best=None))
