"""``finetune run``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.options import LocalCode, Overrides, RecipeName


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
    _print_results(result.summary["results"])
    if verdict := result.summary.get("verdict"):
        typer.echo(verdict)
    typer.echo(f"saved in {result.directory}")


def _print_results(results: list[dict[str, Any]]) -> None:
    from finetune.cli.tables import METRICS, metrics_of, number, print_table

    metrics = metrics_of(results)
    columns = ["result", "test images", *(METRICS[metric] for metric in metrics), "95% interval", "macro F1", "loss"]
    rows = []
    for record in results:
        low, high = record["accuracy_interval"]
        interval = f"{low:.3f} - {high:.3f}" if record["metric"] == "accuracy" else ""
        test = record.get("paired")
        rows.append(
            [
                record["name"],
                f"{record['n']:,}",
                *(number(record[metric]) for metric in metrics),
                interval,
                number(record["macro_f1"]),
                number(record["loss"]),
                number(record.get("expected_calibration_error")),
                f"+{test['gained']} -{test['lost']} (p = {test['p_value']:.2g})" if test else "",
            ]
        )
    columns += ["calibration error", "against the step before"]
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    print_table([columns[i] for i in used], [[row[i] for i in used] for row in rows])
