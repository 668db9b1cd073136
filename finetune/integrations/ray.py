"""Runs on a Ray cluster: Ray Train starts the workers and makes them one JAX world; each of them runs the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import CheckpointError, FinetuneError, MachineError, ProcessLost, first_line
from finetune.folder.run_folder import RunFolder
from finetune.recipe import Recipe, load_recipe
from finetune.run.result import RunResult
from finetune.run.run import with_absolute_paths

if TYPE_CHECKING:
    from ray.train import RunConfig, ScalingConfig

_INSTALL = "pip install 'flax-finetune[ray]'"


def train(
    recipe: Recipe | str | Path,
    scaling_config: ScalingConfig | int = 1,
    *,
    output: str | Path | None = None,
    run_config: RunConfig | None = None,
    **run_options: Any,
) -> RunResult:
    """Runs a recipe on the workers of a Ray cluster, which is started on this machine where there is none.

    Args:
        recipe: from :func:`finetune.load_recipe`, or what that takes. Its paths have to be there for every worker.
        scaling_config: how many workers, with what: one for each host of TPUs, or each GPU. A number means workers with
            processors alone.
        output: the run's folder, on a disk that this machine and the worker of rank 0 share; by default
            ``checkpoints/<name of the recipe>``.
        run_config: of Ray Train. With ``FailureConfig(max_failures=...)``, Ray starts the workers again after a
            failure, and they go on from the newest saved state.
        run_options: of :func:`finetune.run`, such as ``resume``.

    Raises:
        FinetuneError: what a worker raised.
        MachineError: Ray is missing, cannot start the workers, or leaves them apart.
    """
    try:
        from ray.train.v2.api.exceptions import TrainingFailedError
        from ray.train.v2.jax import JaxTrainer
        from ray.train.v2.jax.config import JaxConfig
    except ImportError as error:
        raise MachineError(f"this needs Ray Train: {_INSTALL} ({first_line(error)})") from None

    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    if "data" in run_options:
        raise FinetuneError("data: images in memory cannot be given to workers of Ray; name them in the recipe")
    folder = RunFolder(Path("checkpoints") / recipe.name if output is None else output).directory.absolute()
    scaling, processors_alone = _scaling(scaling_config)
    task = {
        "recipe": with_absolute_paths(recipe).model_dump(mode="json"),
        "options": {**run_options, "output": str(folder)},
        "attempts": _attempts(),
    }
    trainer = JaxTrainer(
        _run_in_worker,
        train_loop_config=task,
        scaling_config=scaling,
        # Ray makes workers one JAX world only where it is told of an accelerator, and of what kind by JAX_PLATFORMS
        jax_config=JaxConfig(use_tpu=scaling.use_tpu, use_gpu=not scaling.use_tpu),
        run_config=_with_platform(run_config, "cpu") if processors_alone else run_config,
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _translate(error) from error
    summary = RunFolder(folder).summary() if folder.is_dir() else None
    if summary is None:
        raise CheckpointError(
            f"{folder}: the run has ended, but its folder is not here: give an output on a shared disk"
        )
    return RunResult(folder, summary, bool(run_options.get("allow_local_code")))


def _run_in_worker(task: dict[str, Any]) -> None:
    import logging
    import sys

    import ray
    from ray.train import get_context

    import finetune
    from finetune.distributed.processes import broadcast, process_count

    sys.argv = ["finetune.integrations.ray"]  # what a run notes as its command; Ray's has addresses, or a password
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Ray shows all that Orbax logs
    workers = get_context().get_world_size()
    if workers > 1 and process_count() != workers:
        raise MachineError(
            f"{workers} workers, but {process_count()} JAX process{'es' if process_count() > 1 else ''}: Ray did not "
            "make them one world; give a ScalingConfig with use_gpu or use_tpu for workers with accelerators, and look "
            "at JAX_PLATFORMS on the workers"
        )
    rank = get_context().get_world_rank()
    again = broadcast(ray.get(task["attempts"].count.remote(rank)) > 1)
    options = dict(task["options"])
    if again:  # Ray starts workers again after a failure
        options |= {"resume": not options.get("extend"), "overwrite": False}
    finetune.run(Recipe.model_validate(task["recipe"]), **options)


def _scaling(scaling_config: ScalingConfig | int) -> tuple[ScalingConfig, bool]:
    """Ray's, and whether its workers have processors alone."""
    from ray.train import ScalingConfig

    if isinstance(scaling_config, int):
        if scaling_config < 1:
            raise FinetuneError(f"scaling_config: {scaling_config} workers; has to be at least 1")
        scaling_config = ScalingConfig(num_workers=scaling_config)
    return scaling_config, not (scaling_config.use_gpu or scaling_config.use_tpu)


def _with_platform(run_config: RunConfig | None, platform: str) -> RunConfig:
    """A copy in which the workers' JAX takes a platform, unless the configuration names one."""
    from dataclasses import replace

    from ray.train import RunConfig

    run_config = run_config or RunConfig()
    environment = dict(run_config.worker_runtime_env or {})
    environment["env_vars"] = {"JAX_PLATFORMS": platform, **environment.get("env_vars", {})}
    return replace(run_config, worker_runtime_env=environment)


def _attempts() -> Any:
    """Counts on the cluster how often the worker of each rank has been started."""
    import ray

    class Attempts:
        def __init__(self) -> None:
            self._of: dict[int, int] = {}

        def count(self, rank: int) -> int:
            self._of[rank] = self._of.get(rank, 0) + 1
            return self._of[rank]

    if not ray.is_initialized():
        ray.init()
    return ray.remote(num_cpus=0)(Attempts).remote()


def _translate(error: Exception) -> Exception:
    """What a worker raised, where it is one of ours: the first that is not the mere echo of another's end."""
    failures = getattr(error, "worker_failures", {})
    ours: list[FinetuneError] = []
    for _, failure in sorted(failures.items()):
        cause: BaseException | None = failure
        while cause is not None and not isinstance(cause, FinetuneError):
            cause = getattr(cause, "cause", None) or cause.__cause__  # Ray keeps it beside, or behind
        if cause is not None:
            ours.append(cause)
    if ours:
        return min(ours, key=lambda cause: isinstance(cause, ProcessLost))
    if not failures:
        return MachineError(f"Ray cannot run the workers: {first_line(error)}")
    ranks = ", ".join(map(str, sorted(failures)))
    return MachineError(
        f"Ray's workers of rank {ranks} ended: {first_line(next(iter(failures.values())))}; what was saved is whole: "
        "go on with resume=True"
    )
