"""``finetune check-data``"""

from __future__ import annotations

from typing import Any

import typer

from finetune.cli.options import AsJson, Overrides, RecipeName
from finetune.cli.tables import print_json, print_table, shape

_NAMES_SHOWN = 10


def check_data(recipe: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Decode every image of a recipe's data: broken images, classes, sizes, images that are in two splits."""
    from finetune.data.splits import load_splits
    from finetune.errors import on_one_line
    from finetune.recipe import load_recipe
    from finetune.report.data import report

    loaded = load_recipe(recipe, overrides or [])
    result = report(load_splits(loaded.data, loaded.seed))
    if as_json:
        print_json(result)
        return
    columns = ["split", "images", "per class", "sizes", "modes"]
    print_table(columns, [_row(name, split) for name, split in result["splits"].items()])
    names, leaks = result["classes"], result["leakage"]
    more = " ..." if len(names) > _NAMES_SHOWN else ""
    typer.echo(f"classes   {len(names)}: {', '.join(names[:_NAMES_SHOWN])}{more}")
    for line in result["notes"]:
        typer.echo(f"note      {on_one_line(line)}")
    for line in result["skipped"]:
        typer.echo(f"skipped   {on_one_line(line)}")
    for line in result["left_out"]:
        typer.echo(f"left out  {on_one_line(line)}")
    typer.echo(f"leakage   {leaks['exact']:,} images are in two splits, {leaks['near']:,} more are near duplicates")
    for pair in leaks["examples"]:
        typer.echo(f"          {on_one_line(' = '.join(pair))}")


def _row(name: str, split: dict[str, Any]) -> list[str]:
    counts = split["per_class"].values()
    return [
        name,
        f"{split['images']:,}",
        f"{min(counts):,} - {max(counts):,}",
        " - ".join(shape(split["sizes"][key]) for key in ("smallest", "largest")),
        ", ".join(f"{mode} {count:,}" for mode, count in split["modes"].items()),
    ]
