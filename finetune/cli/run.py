"""``finetune run``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import LocalCode, Overrides, RecipeName, Verify
from finetune.cli.tables import print_results


def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder.  [default: checkpoints/<recipe>]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the latest saved state.")] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Continue with longer stages; their schedules are made anew.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")] = False,
    verify: Verify = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Run a recipe: train, evaluate and save a classifier."""
    import finetune
    from finetune.errors import Diverged

    loaded = finetune.load_recipe(recipe, overrides or [])
    try:
        result = finetune.run(
            loaded,
            output=output,
            resume=resume,
            extend=extend,
            overwrite=overwrite,
            allow_local_code=allow_local_code,
            verify=verify,
        )
    except Diverged:
        typer.echo("diverged: the run is not finished")
        raise
    print_results(result.summary["results"])
    for name, results in result.summary.get("also", {}).items():
        print_results(results, f"{name} images")
    if verdict := result.summary.get("verdict"):
        typer.echo(verdict)
    typer.echo(f"saved in {result.directory}")
    if result.report.is_file():
        typer.echo(f"report: {result.report}")
