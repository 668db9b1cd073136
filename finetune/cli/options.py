"""Arguments that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(help="A YAML file, or the name of a bundled recipe (see: finetune ls).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as stages.1.epochs=3; ~KEY deletes.")
]
RunOrBundle = Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or a model bundle.")]
LocalCode = Annotated[
    bool, typer.Option("--allow-local-code", help="Import the Linen module of your own that is named: it runs code.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
