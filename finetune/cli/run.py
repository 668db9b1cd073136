"""``finetune run``"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.dry_run import print_dry_run
from finetune.cli.options import LocalCode, Overrides, RecipeName, Verify
from finetune.cli.tables import print_json, print_results

if TYPE_CHECKING:
    from finetune.run.result import RunResult

_SEVERAL = "Several processes"


def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="The run's folder.  [default: checkpoints/<recipe>]"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the latest saved state.")] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Continue with longer stages; their schedules are made anew.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Try a few steps of each stage, and say what the run takes; nothing is saved."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON instead of text.")] = False,
    verify: Verify = False,
    allow_local_code: LocalCode = False,
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Of process 0, where there are several. SLURM, Open MPI, Kubernetes and TPUs say it by themselves.",
            rich_help_panel=_SEVERAL,
        ),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(metavar="N", help="How many there are; 1 runs alone.", rich_help_panel=_SEVERAL)
    ] = None,
    process_id: Annotated[
        int | None, typer.Option(metavar="I", help="This one's, from 0 to N - 1.", rich_help_panel=_SEVERAL)
    ] = None,
    join_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for the others.", rich_help_panel=_SEVERAL)
    ] = 300.0,
) -> None:
    """Run a recipe: train, evaluate and save a classifier."""
    from finetune.distributed.membership import join_processes

    starts = {"--resume": resume, "--extend": extend, "--overwrite": overwrite}
    joins = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    _check_together(dry_run, as_json, starts, joins)
    if dry_run:
        options = {"output": output, "allow_local_code": allow_local_code, "verify": verify}
        _dry_run(recipe, overrides, as_json, options)
        return
    with join_processes(coordinator, num_processes, process_id, timeout=join_timeout):
        result = run_recipe(
            recipe,
            overrides,
            output=output,
            resume=resume,
            extend=extend,
            overwrite=overwrite,
            allow_local_code=allow_local_code,
            verify=verify,
        )
    if result is not None:
        print_result(result)


def _check_together(dry_run: bool, as_json: bool, starts: Mapping[str, bool], joins: Mapping[str, Any]) -> None:
    """Raises:
    RecipeError: options that do not go together.
    """
    from finetune.errors import RecipeError

    if as_json and not dry_run:
        raise RecipeError("--json goes with --dry-run; what a run comes to is in its summary.json")
    if dry_run and (given := [name for name, value in starts.items() if value]):
        raise RecipeError(f"--dry-run starts nothing: leave {given[0]} out")
    if dry_run and (given := [name for name, value in joins.items() if value is not None]):
        raise RecipeError(f"--dry-run is for one process: leave {given[0]} out")


def _dry_run(recipe: str, overrides: list[str] | None, as_json: bool, options: dict[str, Any]) -> None:
    import finetune

    result = finetune.dry_run(finetune.load_recipe(recipe, overrides or []), **options)
    if as_json:
        print_json(result)
    else:
        print_dry_run(result)


def run_recipe(recipe: str, overrides: list[str] | None, **options: Any) -> RunResult | None:
    """The result, on the process that speaks for all; None on others."""
    import finetune
    from finetune.distributed.processes import is_primary
    from finetune.errors import Diverged

    loaded = finetune.load_recipe(recipe, overrides or [])
    try:
        result = finetune.run(loaded, **options)
    except Diverged:
        typer.echo("diverged: the run is not finished")
        raise
    return result if is_primary() else None


def print_result(result: RunResult) -> None:
    print_results(result.summary["results"])
    for name, results in result.summary.get("also", {}).items():
        print_results(results, f"{name} images")
    if verdict := result.summary.get("verdict"):
        typer.echo(verdict)
    typer.echo(f"saved in {result.directory}")
    if result.report.is_file():
        typer.echo(f"report: {result.report}")
