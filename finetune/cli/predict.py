"""``finetune predict``"""

from __future__ import annotations

import csv
import glob
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from finetune.cli.options import AsJson, LocalCode, RunOrBundle, check_share
from finetune.cli.tables import number, print_json, print_table

_AT_A_TIME = 64  # images that are decoded together


def predict(
    directory: RunOrBundle,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="Files, folders (all images inside), or patterns; - reads paths from stdin."
        ),
    ],
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Show so many of the most probable classes.  [default: those that the image is of]"),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Show the sets of classes that hold the true one so often, such as 0.9."),
    ] = None,
    sets: Annotated[
        Literal["lac", "aps", "raps"],
        typer.Option(help="Kind of sets: the smallest (lac), or larger for harder images (aps, raps)."),
    ] = "lac",
    max_error: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Answer only where sure enough that at most so many answers are wrong."),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of text.")] = False,
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Classify images with a trained model. Images that cannot be used are named, and the others classified."""
    import finetune
    from finetune.compiled import keep_compiled_programs
    from finetune.errors import DataError, RecipeError, on_one_line

    check_share("--coverage", coverage)
    check_share("--max-error", max_error)
    if coverage is not None and top is not None:
        raise RecipeError("--coverage shows the classes of each set, and --top a number of them: give one of the two")
    if as_csv and as_json:
        raise RecipeError("--csv and --json are two forms of output: give one of the two")
    keep_compiled_programs()
    predictor = finetune.restore(directory, allow_local_code=allow_local_code)
    options = {"coverage": coverage, "sets": sets, "max_error": max_error}
    names = list(_expand(images))
    if not names:
        raise DataError(f"{', '.join(images)}: no images there")
    classified, broken = [], 0
    for start in range(0, len(names), _AT_A_TIME):
        done, problems = _classify(predictor, names[start : start + _AT_A_TIME], options)
        classified += done
        broken += len(problems)
        for problem in problems:
            typer.echo(on_one_line(f"error: {problem}"), err=True)
    if coverage is not None and not (as_csv or as_json):
        _say_what_is_guaranteed(predictor.confidence, coverage, sets)
    if max_error is not None and not (as_csv or as_json):
        _say_what_is_accepted(predictor.confidence, max_error)
    _show(classified, top, as_csv=as_csv, as_json=as_json)
    if broken:
        raise typer.Exit(2)


def _expand(images: list[str]) -> Iterator[str]:
    """The files that the arguments mean; what is none of them is a file whose problem will be named."""
    for image in images:
        if image == "-":
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif Path(image).is_dir():
            yield from _images_in(Path(image))
        elif not Path(image).exists() and (matches := sorted(glob.glob(image, recursive=True))):
            yield from (name for match in matches for name in _expand([match]))
        else:
            yield image


def _images_in(folder: Path) -> Iterator[str]:
    from finetune.data.sources.file_tree import read_tree
    from finetune.errors import on_one_line

    tree = read_tree(folder)
    yield from map(str, tree.all_images)
    if left_out := tree.all_left_out:
        said = f"{folder}: {len(left_out)} files that are no images are left out, such as {left_out[0]}"
        typer.echo(on_one_line(said), err=True)


def _classify(predictor: Any, names: list[str], options: dict[str, Any]) -> tuple[list[tuple[str, Any]], list[str]]:
    """(name, prediction) of each image that can be used, and what is wrong with the others."""
    from finetune.errors import DataError
    from finetune.images.open import open_image

    opened, problems = {}, []
    for name in names:
        try:
            opened[name] = open_image(name)
        except DataError as error:
            problems.append(str(error))
    usable = [name for name in names if name in opened]
    predictions = predictor.predict([opened[name] for name in usable], **options)
    return list(zip(usable, predictions, strict=True)), problems


def _say_what_is_guaranteed(confidence: Any, coverage: float, sets: Any) -> None:
    count = len(confidence.scores[sets])
    low, high = confidence.coverage_range(coverage, sets)
    if low == 1.0:
        typer.echo(f"sets of {coverage:g}: hold every class; {count} validation images are too few for less")
        return
    typer.echo(
        f"sets of {coverage:g}, for images like the {count:,} validation images: with so many, its own coverage "
        f"is {low:.3f} to {high:.3f} (90% certainty)"
    )


def _say_what_is_accepted(confidence: Any, max_error: float) -> None:
    certainties = confidence.certainties
    threshold = confidence.acceptance_threshold(max_error)
    share = (certainties >= threshold).mean()
    if not share:
        typer.echo(f"no answer is sure enough for an error of {max_error:g}: {len(certainties)} validation images show")
        return
    typer.echo(
        f"answers of probability {threshold:.4f} and more: at most {max_error:g} of them wrong (90% certainty), for "
        f"images like the {len(certainties):,} validation images, of which it answers {share:.1%}"
    )


def _show(classified: list[tuple[str, Any]], top: int | None, *, as_csv: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "image": image,
                    "label": prediction.label,
                    "labels": prediction.labels,
                    "index": prediction.index,
                    "confidence": prediction.confidence,
                    "unknown": prediction.unknown,
                    "set": prediction.set,
                    "accepted": prediction.accepted,
                    "probabilities": prediction.probabilities,
                }
                for image, prediction in classified
            ]
        )
        return
    columns = ["image", "label", "probability"]
    rows = [
        [image, label, number(probability, 6 if as_csv else 4)]
        for image, prediction in classified
        for label, probability in _shown(prediction, top)
    ]
    if as_csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([columns, *rows])
    elif rows:
        print_table(columns, rows)


def _shown(prediction: Any, top: int | None) -> list[tuple[str, float]]:
    """The most probable classes; without a number of them, those of the set, or those that the image is of."""
    if prediction.accepted is False:
        return [("(not sure enough)", prediction.confidence)]
    if prediction.set is not None:
        members = {name: prediction.probabilities[name] for name in prediction.set}
        return sorted(members.items(), key=lambda pair: -pair[1]) or [("(none)", 0.0)]
    ordered = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])
    if top is None:
        return [pair for pair in ordered if pair[0] in prediction.labels] or ordered[:1]
    return ordered[:top]
