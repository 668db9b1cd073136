"""``finetune doctor``"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.options import AsJson, LocalCode, Overrides, RecipeName
from finetune.cli.tables import print_json, print_table

_SHOWN = 5  # findings of each kind


def doctor(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="For doctor.html and doctor.json.  [default: checkpoints/doctor/<recipe>]",
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv", help="Write the images with corrected labels, as a table that a recipe reads."
        ),
    ] = None,
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Look for label errors, duplicates, outliers, overlapping classes and leakage; changes nothing."""
    import finetune
    from finetune.compiled import keep_compiled_programs
    from finetune.report.corrected_labels import overrides_to_read

    loaded = finetune.load_recipe(recipe, overrides or [])
    folder = output or Path("checkpoints") / "doctor" / loaded.name
    keep_compiled_programs()
    result = finetune.diagnose_data(loaded, output=folder, write=write, allow_local_code=allow_local_code)
    if as_json:
        print_json(result)
        return
    _print(result)
    typer.echo(f"all with their pictures: {folder / 'doctor.html'}")
    if write is not None:
        words = [recipe, *(overrides or []), *overrides_to_read(write, loaded.data)]
        typer.echo(f"go through {write} (the column label), then: finetune run {shlex.join(words)}")


def _print(result: Mapping[str, Any]) -> None:
    from finetune.errors import on_one_line
    from finetune.report.findings import count_findings

    for note in result["notes"]:
        typer.echo(f"note      {on_one_line(note)}")
    if probe := result["probe"]:
        low, high = probe["interval"]
        typer.echo(
            f"probe     gives {probe['accuracy']:.1%} ({low:.1%} - {high:.1%}) of {probe['images']:,} images "
            "their label without having learned from them"
        )
        if probe["weak"]:
            typer.echo("          that is little: trust the beginning of each list only, or take a stronger backbone")
    print_table(["finding", "number"], [[name, f"{count:,}"] for name, count in count_findings(result).items()])
    errors = result["label_errors"]["images"]
    _first(
        ["label", "likely", "probability", "image"],
        [[e["label"], e["suggested"], f"{e['probability']:.3f}", _place(e)] for e in errors],
    )
    _first(
        ["duplicates with different labels", "images"],
        [
            ["equal pixels" if group["exact"] else "nearly equal", _labels(group["images"])]
            for group in result["conflicts"]
        ],
    )
    _first(
        ["outlier", "distance", "label"],
        [[_place(image), f"{image['distance']:.3f}", image["label"]] for image in result["outliers"]["images"]],
    )
    _first(
        ["classes that overlap", "confused", "of", "share"],
        [
            [
                " / ".join(pair["classes"]),
                f"{pair['first_as_second'] + pair['second_as_first']:,}",
                f"{pair['images']:,}",
                f"{pair['share']:.1%}",
            ]
            for pair in result["overlap"]
        ],
    )
    _first(
        ["in two splits", "images"],
        [
            ["equal pixels" if pair["exact"] else "nearly equal", _labels(pair["images"])]
            for pair in result["leakage"]["pairs"]
        ],
    )
    _first(["small class", "what follows"], [[e["class"], "; ".join(e["problems"])] for e in result["small_classes"]])


def _first(columns: list[str], rows: list[list[str]]) -> None:
    if rows:
        print_table(columns, rows[:_SHOWN])


def _labels(images: list[dict[str, Any]]) -> str:
    return " = ".join(f"{_place(image)} ({image['label']})" for image in images[:_SHOWN])


def _place(image: Mapping[str, Any]) -> str:
    return f"{image['split']}: {image['image']}"
