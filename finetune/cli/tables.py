"""Tables and numbers as the terminal shows them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from finetune.errors import on_one_line
from finetune.files import json_text

METRICS = {"accuracy": "accuracy", "mean_average_precision": "mean average precision"}  # names to print

_PIPED_WIDTH = 1 << 14  # columns; a program that reads the table wants no line folded


def print_json(data: Any) -> None:
    typer.echo(json_text(data, indent=1))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(on_one_line(cell)) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


def print_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """A table of rows with the same columns, without the columns that are empty in all of them."""
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    print_table(columns, [[row[column] for column in columns] for row in rows])


def metrics_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The deciding metrics of results such as those of summary.json, each once: one, unless the runs differ."""
    return list(dict.fromkeys(result["metric"] for result in results))


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; empty for None."""
    return "" if value is None else f"{value:.{digits}f}"


def result_cells(result: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, str]:
    """The columns that a result such as those of summary.json has; empty where it has no such figure."""
    interval = result.get("accuracy_interval") if result["metric"] == "accuracy" else None
    return {
        **{METRICS[metric]: number(result[metric]) for metric in metrics},
        "95% interval": " - ".join(number(end, 3) for end in interval or ()),
        "macro F1": number(result.get("macro_f1")),
        "loss": number(result["loss"]),
        "calibration error": number(result.get("expected_calibration_error")),
    }


def print_results(results: Sequence[Mapping[str, Any]], images: str = "test images") -> None:
    """The closing table of a run: what each step came to on the same images."""
    metrics = metrics_of(results)
    print_rows(
        [
            {
                "result": result["name"],
                images: f"{result['n']:,}",
                **result_cells(result, metrics),
                "against the step before": _paired(result.get("paired")),
            }
            for result in results
        ]
    )


def _paired(test: Mapping[str, Any] | None) -> str:
    return f"+{test['gained']} -{test['lost']} (p = {test['p_value']:.2g})" if test else ""


def shape(dimensions: Sequence[int]) -> str:
    return "x".join(map(str, dimensions))
