"""The program ``finetune``: its verbs, and how it ends."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from finetune.cli.bench import bench
from finetune.cli.cat import cat, copy
from finetune.cli.check_data import check_data
from finetune.cli.compare import compare
from finetune.cli.demo import demo
from finetune.cli.doctor import doctor
from finetune.cli.evaluate import evaluate
from finetune.cli.grammar import Verbs, epilog
from finetune.cli.inspect import inspect
from finetune.cli.leaderboard import leaderboard
from finetune.cli.lr_find import lr_find
from finetune.cli.ls import list_recipes
from finetune.cli.models import list_models
from finetune.cli.plan import plan
from finetune.cli.predict import predict
from finetune.cli.push import push
from finetune.cli.resume import resume
from finetune.cli.run import run
from finetune.cli.schema import schema
from finetune.cli.soup import soup
from finetune.cli.train import train
from finetune.cli.validate import validate

app = typer.Typer(
    name="finetune",
    cls=Verbs,
    help="Fine-tune pretrained vision models in JAX: from a recipe to a classifier that is evaluated and saved.",
    epilog="Exit codes: 0 done, 2 a mistake in what was given, 3 the run diverged, 128 + N stopped by signal N.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
_VERBS: dict[str, Callable[..., None]] = {
    "run": run,
    "train": train,
    "resume": resume,
    "predict": predict,
    "demo": demo,
    "evaluate": evaluate,
    "compare": compare,
    "soup": soup,
    "push": push,
    "leaderboard": leaderboard,
    "check-data": check_data,
    "doctor": doctor,
    "plan": plan,
    "bench": bench,
    "lr-find": lr_find,
    "inspect": inspect,
    "validate": validate,
    "schema": schema,
    "ls": list_recipes,
    "cat": cat,
    "cp": copy,
    "models": list_models,
}
for _name, _function in _VERBS.items():
    app.command(_name, epilog=epilog(_name))(_function)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        import finetune

        typer.echo(f"finetune {finetune.__version__} (jax {version('jax')}, Python {sys.version.split()[0]})")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The options of the program itself."""


def main() -> None:
    """Runs the command line.

    A mistake in the input ends with one message and exit code 2, never with a traceback; a run that diverged with 3; a
    run that a signal stopped with 128 plus the signal's number.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal or pipe may lack the characters of a name
    for library in ("absl", "asyncio"):  # Orbax logs each failure several times; one message is enough
        logging.getLogger(library).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # from Pillow; such images are refused
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # about metadata, which no pixel depends on
    sys.unraisablehook = lambda _: None  # TensorStore's threads repeat an error that was already raised
    from finetune.errors import FinetuneError, Interrupted
    from finetune.foreign_errors import foreign_errors_translated
    from finetune.signals import own_process

    own_process()
    try:
        with foreign_errors_translated():
            _run_app()
    except Interrupted as error:
        _stop(str(error), error.exit_code)
    except FinetuneError as error:
        _stop(f"error: {error}", error.exit_code)


def _run_app() -> None:
    """Runs the app, and writes what it printed: that this fails, for example because a disk is full, is seen here."""
    try:
        app()
    finally:
        try:
            sys.stdout.flush()
        except OSError as error:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  Python writes the rest when it ends
            if not isinstance(error, BrokenPipeError):
                raise


def _stop(message: str, code: int) -> None:
    from finetune.errors import printable

    typer.echo(printable(message), err=True)
    sys.exit(code)
