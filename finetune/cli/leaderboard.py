"""``finetune leaderboard``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import AsJson, DataOverrides, ImageSource
from finetune.cli.tables import METRICS, number, print_json, print_table


def leaderboard(
    source: ImageSource,
    options: DataOverrides = None,
    backbones: Annotated[str, typer.Option(metavar="A,B,...", help="Pretrained models.")] = "builtin:tiny-clip",
    heads: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="Of linear_probe, knn, prototype, tip_adapter, lp++, clap and zero_shot."),
    ] = "linear_probe,knn,prototype",
    template: Annotated[
        list[str], typer.Option(metavar="TEXT", help="A prompt; {} stands for the class name. May be repeated.")
    ] = ["a photo of a {}"],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Of the splits.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="For leaderboard.json, leaderboard.png and best.yaml.")
    ] = Path("checkpoints/leaderboard"),
    as_json: AsJson = False,
) -> None:
    """Compare backbones and heads on your images, and write the best as a recipe."""
    import finetune
    from finetune.recipe import read_data_config

    result = finetune.make_leaderboard(
        read_data_config(source, options or []),
        _names(backbones),
        _names(heads),
        templates=template,
        seed=seed,
        output=output,
    )
    if as_json:
        print_json(result)
        return
    metric = result["metric"]
    columns = ["backbone", "head", f"test {METRICS[metric]}", "95% interval", f"validation {METRICS[metric]}"]
    rows = [
        [
            row["backbone"],
            row["head"],
            number(row[metric]),
            "" if row["interval"] is None else f"{row['interval'][0]:.4f} - {row['interval'][1]:.4f}",
            number(row["validation"]),
            f"{row['fit_seconds']:.2f}",
            f"{row['parameters']:,}",
            f"{row['images_per_second']:,.0f}",
        ]
        for row in result["rows"]
    ]
    print_table([*columns, "seconds", "parameters", "images/s"], rows)
    for line in result["left_out"]:
        typer.echo(f"left out: {line}")
    if result["chosen_on"] == "test":
        typer.echo("no validation images: the order is that of the test images, so expect a little less of the first")
    typer.echo(f"go on with the first: finetune run {output / 'best.yaml'}")


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
