"""``finetune evaluate``"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from finetune.cli.options import AsJson, LocalCode, Verify
from finetune.cli.tables import print_json, print_rows, result_cells

_NAMES_SHOWN = 20


def evaluate(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A run's folder, or a URL of one.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Of other data, such as data.columns.label=species."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Measure on all images of this source instead.")
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"] | None,
        typer.Option(help="Measure on this split of the data.  [default: test, or all of SOURCE]"),
    ] = None,
    verify: Verify = False,
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Measure a trained model, on its run's test images or on others."""
    import finetune
    from finetune.compiled import keep_compiled_programs
    from finetune.errors import RecipeError, on_one_line
    from finetune.recipe import read_data_config
    from finetune.run.progress import Progress

    if options and data is None:
        raise RecipeError(f"{options[0]!r}: options are for other images: give them as --data SOURCE")
    source = None if data is None else read_data_config(data, options or [])
    keep_compiled_programs()
    with Progress() as display:
        result = finetune.evaluate_run(
            directory,
            source,
            split=split,
            verify=verify,
            allow_local_code=allow_local_code,
            track=display.track,
        )
    if as_json:
        print_json(result)
        return
    metric = result["metric"]
    print_rows([{"split": result["split"], "images": f"{result['n']:,}", **result_cells(result, [metric])}])
    if calibration := result["calibration"]:
        typer.echo(
            f"calibrated, as predict shows it: loss {calibration['loss_after']:.4f}, calibration error "
            f"{calibration['expected_calibration_error_after']:.4f}"
        )
    for line in result["notes"]:
        typer.echo(f"note: {on_one_line(line)}")
    if metric == "mean_average_precision":
        names = result["class_names"]
        more = " ..." if len(names) > _NAMES_SHOWN else ""
        typer.echo(f"labels: {', '.join(names[:_NAMES_SHOWN])}{more}")
    if result["skipped"]:
        typer.echo(f"broken images left out: {result['skipped']}")
    if result["left_out"]:
        typer.echo(f"files that are no images of a class, left out: {result['left_out']}")
    if result["trained_on"] and result["split"] != "train":
        typer.echo(f"the model was trained on {result['trained_on']:,} of these images: expect less on others")
