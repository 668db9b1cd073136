"""``finetune push``"""

from __future__ import annotations

from typing import Annotated

import typer

from finetune.cli.options import AsJson
from finetune.cli.tables import print_json


def push(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A run's folder, or a model bundle.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a repository that others do not see.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="A branch, made where there is none.  [default: main]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put a model on the Hugging Face hub: the bundle and its card, and nothing else of the run."""
    import finetune

    pushed = finetune.push_to_hub(directory, repository, private=private, revision=revision)
    if as_json:
        return print_json(pushed.to_json())
    place = repository if revision is None else f"{repository}@{revision}"
    typer.echo(f"{pushed.url}: {pushed.files} files, {pushed.size / 1e6:.1f} MB")
    typer.echo(f"try it: finetune predict {place} image.png")
    return None
