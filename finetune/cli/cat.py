"""``finetune cat`` and ``finetune cp``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import Overrides, RecipeName


def cat(
    recipe: RecipeName,
    overrides: Overrides = None,
    every: Annotated[bool, typer.Option("--all", help="Every value, defaults too, as a run saves it.")] = False,
) -> None:
    """Print a recipe: as it is written, or with overrides applied."""
    from finetune.recipe import load_recipe
    from finetune.recipe.source import dump_recipe

    typer.echo(dump_recipe(load_recipe(recipe, overrides or [])) if every or overrides else _text(recipe), nl=False)


def copy(
    recipe: RecipeName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Such as my.yaml.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")] = False,
) -> None:
    """Copy a bundled recipe to a file of your own, comments included."""
    from finetune.errors import RecipeError
    from finetune.files import write_text

    text = _text(recipe)
    if file.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{file}: a recipe is a YAML file: give a name that ends with .yaml")
    if file.exists() and not overwrite:
        raise RecipeError(f"{file}: is there already; give another name, or --overwrite")
    write_text(file, text)
    typer.echo(f"{file}: edit it, then: finetune validate {file}")


def _text(recipe: str) -> str:
    from finetune.errors import RecipeError
    from finetune.recipe import find_recipe
    from finetune.untrusted import RECIPE_BYTES, read_bytes

    return read_bytes(find_recipe(recipe), RECIPE_BYTES, RecipeError).decode(errors="replace")
