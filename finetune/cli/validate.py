"""``finetune validate``"""

from __future__ import annotations

from typing import Annotated

import typer

from finetune.cli.options import AsJson, LocalCode
from finetune.cli.tables import print_json


def validate(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="YAML files or names of bundled recipes.")
    ],
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Check recipes without data: keys, values, and whether partitions fit the model's parameters."""
    import finetune
    from finetune.errors import FinetuneError

    names: list[str] = []
    overrides: list[str] = []
    for text in recipes:
        (overrides if "=" in text or text.startswith("~") else names).append(text)
    results, problems = [], []
    for name in names:
        try:
            results.append(
                finetune.validate_recipe(finetune.load_recipe(name, overrides), allow_local_code=allow_local_code)
            )
        except FinetuneError as error:
            problems.append(str(error))
    if as_json:
        print_json({"valid": results, "problems": problems})
    else:
        for result in results:
            typer.echo(f"{result['name']}: valid" + (f"; {result['unchecked']}" if result["unchecked"] else ""))
    if problems:
        raise FinetuneError("\n".join(problems))
