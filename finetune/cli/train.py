"""``finetune train``"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import DataOverrides, ImageSource
from finetune.cli.run import print_result


def train(
    source: ImageSource,
    options: DataOverrides = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A folder, a hub id or builtin:tiny-clip.  [default: facebook/dinov2-small; offline, the bundled one]",
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(metavar="M", help="For the whole run.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of the splits and of training.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="The run's folder.  [default: checkpoints/<name of SOURCE>]"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")] = False,
) -> None:
    """Train a classifier of your images, without a recipe: one is chosen by their number and the time there is."""
    import finetune
    from finetune.folder.run_folder import RunFolder
    from finetune.recipe import read_data_config

    data, name = read_data_config(source, options or []), name_of(source)
    directory = output or Path("checkpoints") / name
    RunFolder(directory).check_free(overwrite=overwrite, go_on=f"finetune resume {directory}")
    chosen = finetune.choose_recipe(data, backbone=backbone, minutes=minutes, name=name, seed=seed)
    for line in chosen.reasons:
        typer.echo(line)
    result = finetune.run(chosen.recipe, output=directory, overwrite=overwrite)
    print_result(result)
    typer.echo(f"recipe: {directory / 'recipe.yaml'}")


def name_of(source: str) -> str:
    """A recipe's name from that of its images, such as ``flowers`` of ``~/photos/flowers/``."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).expanduser().absolute().stem).strip("-._")
    return words[:100] or "train"
