"""``finetune lr-find``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import AsJson, LocalCode, Overrides, RecipeName
from finetune.cli.tables import print_json, print_table


def lr_find(
    recipe: RecipeName,
    overrides: Overrides = None,
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="A training stage.  [default: the first]")] = None,
    steps: Annotated[int, typer.Option(min=20, metavar="N", help="Steps, at most.")] = 100,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The curve.  [default: checkpoints/lr-find/<recipe>-<stage>.png]"
        ),
    ] = None,
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Look for a learning rate: it grows until training breaks, and the loss shows where it falls fastest."""
    import finetune

    loaded = finetune.load_recipe(recipe, overrides or [])
    name = stage or next((each.name for each in loaded.train_stages.values()), "none")
    figure = output or Path("checkpoints") / "lr-find" / f"{loaded.name}-{name}.png"
    result = finetune.find_learning_rate(
        loaded, stage=stage, steps=steps, figure=figure, allow_local_code=allow_local_code
    )
    if as_json:
        print_json({**result, "figure": str(figure)})
        return
    partitions = result["partitions"]
    if result["suggested"] is None:
        typer.echo(f"{result['stage']}: the loss falls nowhere: nothing to suggest; see {figure}")
        return
    typer.echo(f"{result['stage']}: the loss falls fastest at {result['suggested']:.3g} times the recipe's rates")
    rows = [[each["name"], f"{each['learning_rate']:.3g}", f"{each['suggested']:.3g}"] for each in partitions]
    print_table(["partition", "learning rate", "suggested"], rows)
    typer.echo(" ".join(f"{each['key']}={each['suggested']:.3g}" for each in partitions))
    typer.echo(f"curve: {figure}")
