"""Arguments and options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(help="A YAML file, or the name of a bundled recipe (see: finetune ls).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Such as stages.1.epochs=3; ~KEY deletes a key."),
]
RunOrBundle = Annotated[
    str, typer.Argument(metavar="DIR", help="A run's folder or a model bundle, a URL of one, or a hub id.")
]
ImageSource = Annotated[
    str, typer.Argument(metavar="SOURCE", help="The images: a folder, a table, a hub id, or digits.")
]
DataOverrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Of the data, such as data.fraction=0.1.")
]
LocalCode = Annotated[
    bool,
    typer.Option(
        "--allow-local-code",
        help="Import the Linen module that the recipe or the run names: it runs code.",
    ),
]
Verify = Annotated[
    bool, typer.Option("--verify", help="Read every image again, even where nothing seems to have changed.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def check_share(option: str, share: float | None) -> None:
    """
    Raises:
        RecipeError: it is none.
    """
    from finetune.errors import RecipeError

    if share is not None and not 0 < share < 1:
        raise RecipeError(f"{option}: a share between 0 and 1; received {share:g}")
