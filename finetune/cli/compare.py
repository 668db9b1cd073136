"""``finetune compare``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.options import AsJson
from finetune.cli.tables import METRICS, metrics_of, number, print_json, print_table
from finetune.files import json_text


def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="The folders of finished runs.")],
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw their curves: .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set finished runs side by side: test results, speed and curves."""
    from finetune.report.compare import compare_runs
    from finetune.run.curves import draw_curves

    runs = compare_runs(directories)
    drawn = figure is not None and draw_curves(runs, figure)
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
    if keys := list(runs[0]["settings"]):
        rows = [[key, *(_value(run["settings"][key]) for run in runs)] for key in keys]
        print_table(["setting", *(run["name"] for run in runs)], rows)
    if figure is not None:
        typer.echo(
            f"curves in {figure}" if drawn else "no curves to draw: none of the runs trained by gradient descent"
        )


def _value(value: Any) -> str:
    """As a recipe has it; empty where it has none."""
    return "" if value is None else json_text(value).strip('"')


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
