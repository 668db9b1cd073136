"""The story of a run: from a recipe to a classifier that is trained, measured and saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from finetune.checkpoint import RunCheckpoints
from finetune.compiled import keep_compiled_programs
from finetune.data.sources import is_path
from finetune.data.workers import check_workers
from finetune.distributed.membership import member
from finetune.distributed.processes import check_alike, from_primary, is_primary, process_count
from finetune.distributed.sharding import Placement
from finetune.errors import CheckpointError, Interrupted, MeshError
from finetune.files import hash_json
from finetune.folder.about import about_program, about_run
from finetune.folder.mirror import bring_back, mirrored
from finetune.folder.run_folder import RunFolder
from finetune.folder.unwritten import UnwrittenFolder
from finetune.foreign_errors import foreign_errors_translated
from finetune.recipe import ModuleConfig, Recipe
from finetune.recipe.mesh import AUTO, MeshConfig
from finetune.recipe.saving import SaveConfig
from finetune.run.continuation import Continuation, check_continuation
from finetune.run.interpolation import interpolate_weights
from finetune.run.page import write_report
from finetune.run.progress import Progress
from finetune.run.result import RunResult
from finetune.run.resume import RunProgress
from finetune.run.run_trackers import RunTrackers, StepsOfRun
from finetune.run.session import RunSession
from finetune.run.setup import RunSetup, prepare_run
from finetune.run.shared_checkpoints import SharedCheckpoints
from finetune.run.stages import measure_first_head, run_stage
from finetune.signals import StopSignal
from finetune.trackers.open import open_trackers
from finetune.trackers.tracker import Tracker


@foreign_errors_translated()
def run(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    extend: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    data: Any = None,
    allow_local_code: bool = False,
    verify: bool = False,
    trackers: Sequence[Tracker] = (),
) -> RunResult:
    """Runs a recipe from pretrained weights to a measured, saved classifier.

    Args:
        recipe: from :func:`load_recipe`.
        output: the run's folder; by default ``checkpoints/<name of the recipe>``.
        resume: go on from the newest saved state in the folder, or begin if there is none. Workers, the batch size of
            evaluation, the name and what is saved may be others than at the start; images may have moved.
        extend: go on where the last stage that has begun, or one to come, is longer than it was. Its schedules are made
            anew for the new length.
        overwrite: replace an earlier run in the folder, once recipe, data and weights are known to be good.
        quiet: print nothing.
        data: a ``datasets.Dataset``, or a mapping of split names to some, for a recipe with ``data.source: memory``.
        allow_local_code: import the module that ``backbone.module`` names, if it is not one of this toolkit's. That
            runs it: look at it first.
        verify: read every image again, whatever is cached; for a change that kept a file's size and times.
        trackers: of your own, besides those that the recipe names; process 0 alone tells them.

    Raises:
        FinetuneError: anything wrong with recipe, data, weights or folder; it says what.
    """
    if overwrite and (resume or extend):
        given = "--extend" if extend else "--resume"
        raise CheckpointError(f"--overwrite starts anew and {given} goes on: give one of them")
    keep_compiled_programs()
    recipe = with_absolute_paths(recipe)
    directory = default_folder(recipe) if output is None else Path(output)
    folder = RunFolder(directory) if is_primary() else UnwrittenFolder(directory)
    resume = resume or extend
    if recipe.data.num_workers:
        check_workers(recipe.data.num_workers)
    followers = [*open_trackers(recipe.trackers), *trackers] if is_primary() else []
    if is_primary() and resume and recipe.save.mirror and not folder.directory.exists():
        bring_back(folder.directory, recipe.save.mirror)
    doing = "--resume" if resume else "--overwrite" if overwrite else "run"
    with (
        member(folder.unlock),
        _stopping(folder) as signal,
        Progress(quiet or not is_primary(), signal.check) as display,
        folder.reserve(doing, resume=resume, overwrite=overwrite, say=display.say),
    ):
        progress = RunProgress()
        if resume and recipe.mesh == AUTO:
            recipe = recipe.model_copy(update={"mesh": _chosen_mesh(folder)})
        with progress.timed("load"):
            setup = prepare_run(
                recipe, data=data, allow_local_code=allow_local_code, track=display.track, verify=verify
            )
            _check_members(setup)
            frozen_sha256 = setup.hash_frozen(setup.variables)
        for line in setup.describe():
            display.say(line)
        going_on = is_primary() and resume and folder.holds_run()
        continuation = check_continuation(folder, setup, extend) if going_on else None
        if continuation is None:
            license = setup.backbone.license
            about = about_run(setup.recipe, setup.backbone_sha256, setup.splits.sha256, license)
            folder.start(setup.recipe, about, setup.splits.skipped, setup.images, overwrite=overwrite, say=display.say)
        else:
            for line in continuation.lines:
                display.say(line)
        finished = from_primary(lambda: _finished(setup, folder, display, continuation))
        if finished is not None:
            return RunResult(folder.directory, finished, allow_local_code)
        with _saving(folder, recipe.save, setup.placement, signal, display) as checkpoints:
            steps = StepsOfRun(setup.recipe, [length.total_steps for length in setup.lengths])
            with RunTrackers(followers, folder, steps, display.say, lambda: signal.received is not None) as tracked:
                session = RunSession(setup, folder, checkpoints, display, signal, progress, tracked)
                display.check = session.check
                session.restore(continuation)
                tracked.begin(setup.recipe, session.step)
                _go_through_stages(session)
                checkpoints.wait()
                return RunResult(folder.directory, session.finish(frozen_sha256), allow_local_code)


def default_folder(recipe: Recipe) -> Path:
    """Where a run goes that is not told."""
    return Path("checkpoints") / recipe.name


def _chosen_mesh(folder: RunFolder) -> MeshConfig | Literal["auto"]:
    """The mesh that the start of the run chose, where the devices are those of then."""

    def chosen() -> Any:
        if not folder.holds_run() or folder.about().get("devices") != about_program()["devices"]:
            return AUTO
        mesh = folder.recipe().mesh
        return mesh.model_dump(mode="json") if isinstance(mesh, MeshConfig) else AUTO

    mesh = from_primary(chosen)
    return AUTO if mesh == AUTO else MeshConfig.model_validate(mesh)


def _finished(
    setup: RunSetup, folder: RunFolder, display: Progress, continuation: Continuation | None
) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do."""
    if continuation is None or continuation.longer or (summary := folder.summary()) is None:
        return None
    display.say(f"{folder.directory}: already finished")
    if not folder.report.is_file():
        write_report(setup, folder, summary, display)
    return summary


def _check_members(setup: RunSetup) -> None:
    """All processes of a run work on the same.

    Raises:
        FinetuneError: one has another recipe, other weights or other images; or there are more than images.
    """
    if process_count() == 1:
        return
    recipe = setup.recipe.model_dump(mode="json")
    del recipe["data"]["source"]  # images are known by their content
    check_alike("the recipe", hash_json(recipe))
    check_alike("the backbone's weights", setup.backbone_sha256)
    check_alike("the images", setup.splits.sha256)
    if process_count() > len(setup.train):
        raise MeshError(f"{process_count()} processes are more than {len(setup.train)} training images; start fewer")


def _go_through_stages(session: RunSession) -> None:
    """Those that are still to come."""
    recipe = session.setup.recipe
    session.check("before the first stage")
    if session.progress.at_beginning and recipe.head.classifies_from_the_start:
        measure_first_head(session)
    for index in range(session.progress.next_stage, len(recipe.stages)):
        run_stage(session, index)
        if index < len(recipe.stages) - 1:
            session.check(f"at the end of stage {recipe.stages[index].name!r}")
    interpolate_weights(session)


@contextmanager
def _saving(
    folder: RunFolder, config: SaveConfig, placement: Placement, signal: StopSignal, display: Progress
) -> Iterator[SharedCheckpoints]:
    """The run's saved states, and their copies at a URL."""
    if not is_primary():
        yield SharedCheckpoints(None, placement)
        return
    with mirrored(folder.directory, config.mirror, display.say) as mirror:
        saved = None if mirror is None else mirror.update
        with RunCheckpoints(
            folder.state, keep_last=config.keep_last, keep_best=config.keep_best, saved=saved, placement=placement
        ) as checkpoints:
            signal.busy = lambda: checkpoints.busy or (mirror is not None and mirror.busy)
            yield SharedCheckpoints(checkpoints, placement)


@contextmanager
def _stopping(folder: RunFolder) -> Iterator[StopSignal]:
    """Minds signals, and says what they leave.

    Raises:
        Interrupted: one came.
    """

    def saved() -> str:
        if not is_primary():
            return "saved by process 0"
        return "saved: continue with --resume" if folder.holds_run() else "nothing had been started"

    def leave() -> str:
        folder.unlock()
        return f"{folder.directory}: stopped within a long computation; what was done before it is {saved()}"

    with StopSignal() as signal:
        signal.at_end = leave
        try:
            yield signal
        except Interrupted as error:
            raise Interrupted(f"{folder.directory}: {error}; {saved()}", error.signal) from None


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """So that the saved recipe means the same from any folder."""

    def absolute(config: Any, key: str) -> Any:
        source = getattr(config, key)
        if source is None or not is_path(source):
            return config
        return config.model_copy(update={key: str(Path(source).expanduser().absolute())})

    weights = "weights" if isinstance(recipe.backbone, ModuleConfig) else "source"
    further = {
        name: str(Path(source).expanduser().absolute()) if is_path(source) else source
        for name, source in recipe.evaluate.also.items()
    }
    parts = {
        "backbone": absolute(recipe.backbone, weights),
        "data": absolute(recipe.data, "source"),
        "evaluate": recipe.evaluate.model_copy(update={"also": further}),
    }
    return recipe.model_copy(update=parts)
