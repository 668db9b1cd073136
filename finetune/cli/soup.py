"""``finetune soup``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from finetune.cli.options import LocalCode
from finetune.cli.tables import print_results


def soup(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="The folders of finished runs.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder for the soup.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Validation images.  [default: those of the first run that no run was trained on]",
        ),
    ] = None,
    batch_norm: Annotated[
        Literal["reestimate", "average"],
        typer.Option(help="Running statistics that differ: estimated on training images, or averaged."),
    ] = "reestimate",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")] = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Average the weights of runs, as long as that helps on validation images."""
    from finetune.compiled import keep_compiled_programs
    from finetune.run.progress import Progress
    from finetune.run.soup import make_soup

    keep_compiled_programs()
    with Progress() as display:
        result = make_soup(
            directories,
            output,
            data=data,
            batch_norm=batch_norm,
            overwrite=overwrite,
            allow_local_code=allow_local_code,
            track=display.track,
            say=display.say,
        )
    made = result.summary["soup"]
    print_results(result.summary["results"])
    typer.echo(f"in the soup: {', '.join(made['members'])}; chosen on {made['images']:,} validation images")
    if made["left_out"]:
        typer.echo(f"left out, as the soup is worse with them: {', '.join(made['left_out'])}")
    typer.echo(result.summary["verdict"])
    typer.echo(f"saved in {result.directory}")
