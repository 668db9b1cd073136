"""``finetune compare``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.options import AsJson
from finetune.cli.tables import METRICS, metrics_of, number, print_json, print_table


def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="The folders of finished runs.")],
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw their curves: .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set finished runs side by side: test results, speed and curves."""
    from finetune.report.compare import compare_runs, draw_curves

    runs = compare_runs(directories)
    if figure is not None:
        draw_curves(runs, figure)
    if as_json:
        print_json(runs)
        return
    metrics = metrics_of([run["results"] for run in runs])
    names = [METRICS[metric] for metric in metrics]
    tests, validations = [f"test {name}" for name in names], [f"best validation {name}" for name in names]
    columns = ["run", *tests, "test loss", *validations, "last training loss", "images/s"]
    print_table(columns, [_row(run, metrics) for run in runs])
    if len(metrics) > 1:
        typer.echo(f"the runs have different metrics ({', '.join(names)}): compare within a column only")
    if figure is not None:
        typer.echo(f"curves in {figure}")


def _row(run: dict[str, Any], metrics: list[str]) -> list[str]:
    results, curves, speed = run["results"], run["curves"], run["images_per_second"]
    deciding = results["metric"]
    best = max((value for _, value in curves[f"validation_{deciding}"]), default=None)
    losses = curves["train_loss"]
    return [
        run["name"],
        *(number(results[metric] if metric == deciding else None) for metric in metrics),
        number(results["loss"]),
        *(number(best if metric == deciding else None) for metric in metrics),
        number(losses[-1][1] if losses else None),
        "" if speed is None else f"{speed:,.0f}",
    ]
