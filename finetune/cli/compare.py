"""``finetune compare``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.options import AsJson
from finetune.cli.tables import METRICS, metrics_of, number, print_json, print_table

if TYPE_CHECKING:
    from finetune.report.paired import PairedRuns


def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="The folders of finished runs.")],
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw their curves: .png, .svg or .pdf.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page about them, class by class.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set finished runs side by side: test results, paired tests, speed and curves."""
    from finetune.report.compare import compare_runs
    from finetune.report.compare_page import setting_text, with_unique_names, write_comparison
    from finetune.report.paired import KeptPredictions
    from finetune.run.curves import draw_curves

    runs = compare_runs(directories)
    drawn = figure is not None and draw_curves(runs, figure)
    if html is not None:
        write_comparison(directories, html)
    if as_json:
        print_json(runs)
        return
    runs = with_unique_names(runs)
    metrics = metrics_of([run["results"] for run in runs])
    names = [METRICS[metric] for metric in metrics]
    tests, validations = [f"test {name}" for name in names], [f"best validation {name}" for name in names]
    columns = ["run", *tests, "test loss", *validations, "last training loss", "images/s"]
    print_table(columns, [_row(run, metrics) for run in runs])
    if len(metrics) > 1:
        typer.echo(f"the runs have different metrics ({', '.join(names)}): compare within a column only")
    if len(runs) > 1:
        names = [run["name"] for run in runs]
        _print_paired([(names[pair.second], names[pair.first], pair) for pair in KeptPredictions(directories).paired()])
    if keys := list(runs[0]["settings"]):
        rows = [[key, *(setting_text(run["settings"][key]) for run in runs)] for key in keys]
        print_table(["setting", *(run["name"] for run in runs)], rows)
    if figure is not None:
        typer.echo(
            f"curves in {figure}" if drawn else "no curves to draw: none of the runs trained by gradient descent"
        )
    if html is not None:
        typer.echo(f"page: {html}")


def _print_paired(pairs: Sequence[tuple[str, str, PairedRuns]]) -> None:
    columns = ["paired test", "against", "gained", "lost", "p-value", "adjusted (Holm)"]
    rows = [
        [run, other, str(pair.test.gained), str(pair.test.lost), f"{pair.test.p_value:.2g}", f"{pair.adjusted:.2g}"]
        for run, other, pair in pairs
        if pair.test is not None
    ]
    if rows:
        print_table(columns, rows)
    for run, other, pair in pairs:
        if pair.problem is not None:
            typer.echo(f"{run} and {other}: no paired test: {pair.problem}")


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
