"""``finetune evaluate``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.options import AsJson, LocalCode
from finetune.cli.tables import METRICS, number, print_json, print_table


def evaluate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Measure on the test images of this source instead.")
    ] = None,
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Measure a trained model on its run's test images."""
    import finetune

    result = finetune.evaluate_run(directory, data, allow_local_code=allow_local_code)
    if as_json:
        print_json(result)
        return
    metric = result["metric"]
    row = [f"{result['n']:,}", number(result[metric]), number(result["loss"])]
    print_table(["test images", METRICS[metric], "loss"], [row])
    if result["skipped"]:
        typer.echo(f"broken images left out: {result['skipped']}")
