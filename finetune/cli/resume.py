"""``finetune resume``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import LocalCode, Overrides, Verify
from finetune.cli.run import print_result, run_recipe


def resume(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run that was interrupted.")],
    overrides: Overrides = None,
    verify: Verify = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Continue a run from its latest saved state, with the recipe in its folder."""
    from finetune.errors import CheckpointError

    recipe = directory / "recipe.yaml"
    if not recipe.is_file():
        raise CheckpointError(f"{directory}: has no recipe.yaml; give the folder of a run")
    options = {"output": directory, "resume": True, "verify": verify, "allow_local_code": allow_local_code}
    if (result := run_recipe(str(recipe), overrides, **options)) is not None:
        print_result(result)
