"""``finetune run``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.options import LocalCode, Overrides, RecipeName
from finetune.cli.tables import metrics_of, print_rows, result_cells


def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder.  [default: checkpoints/<recipe>]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the latest saved state.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier run in the folder first.")] = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Run a recipe: train, evaluate and save a classifier."""
    import finetune
    from finetune.errors import Diverged

    loaded = finetune.load_recipe(recipe, overrides or [])
    try:
        result = finetune.run(
            loaded, output=output, resume=resume, overwrite=overwrite, allow_local_code=allow_local_code
        )
    except Diverged:
        typer.echo("diverged: the run is not finished")
        raise
    results = result.summary["results"]
    metrics = metrics_of(results)
    print_rows(
        [
            {
                "result": record["name"],
                "test images": f"{record['n']:,}",
                **result_cells(record, metrics),
                "against the step before": _paired(record.get("paired")),
            }
            for record in results
        ]
    )
    if verdict := result.summary.get("verdict"):
        typer.echo(verdict)
    typer.echo(f"saved in {result.directory}")
    if result.report.is_file():
        typer.echo(f"report: {result.report}")


def _paired(test: dict[str, Any] | None) -> str:
    return f"+{test['gained']} -{test['lost']} (p = {test['p_value']:.2g})" if test else ""
