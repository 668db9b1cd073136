"""``finetune demo``"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from finetune.cli.options import LocalCode, RunOrBundle, check_share


def demo(
    directory: RunOrBundle,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 takes one that is free.")] = 7860,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="0.0.0.0 shows the page to the whole network.")
    ] = "127.0.0.1",
    coverage: Annotated[
        float, typer.Option(metavar="SHARE", help="How often the sets of classes are to hold the true one.")
    ] = 0.9,
    neighbors: Annotated[
        bool, typer.Option("--neighbors/--no-neighbors", help="Show the nearest training images, where they are known.")
    ] = True,
    allow_local_code: LocalCode = False,
) -> None:
    """Try a trained model on images of your own, on a page in the browser."""
    from finetune.compiled import keep_compiled_programs
    from finetune.demo.page import import_gradio, make_app, prepare
    from finetune.demo.server import bound_to, ended_by_signals, serve
    from finetune.run.progress import Progress

    check_share("--coverage", coverage)
    with (
        ended_by_signals(),
        TemporaryDirectory(prefix=f"finetune-demo-{os.getpid()}-") as uploads,
        bound_to(host, port) as listener,
    ):
        import_gradio(Path(uploads))  # before a model is loaded for nothing
        keep_compiled_programs()
        with Progress() as display:
            respondent = prepare(
                directory,
                coverage=coverage,
                neighbors=neighbors,
                allow_local_code=allow_local_code,
                track=display.track,
            )
        app = make_app(respondent, Path(directory).resolve().name, Path(uploads))
        typer.echo(f"{listener.url}   (Ctrl-C ends it)")
        sys.stdout.flush()  # a pipe gets it at once, too
        serve(app, listener)
