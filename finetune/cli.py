"""The command line: each command parses, calls one public function and prints. Heavy imports wait until then."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="finetune",
    help="Fine-tune pretrained vision models in JAX: from a recipe to a classifier that is measured and saved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or a model bundle.")]
LocalCode = Annotated[
    bool, typer.Option("--allow-local-code", help="Import the Linen module of your own that is named: it runs code.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a bundled recipe (see: finetune ls).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as stages.1.epochs=3; ~KEY deletes.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder.  [default: checkpoints/<recipe>]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest saved state in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier run in the folder first.")] = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Run a recipe: train, evaluate and save a classifier."""
    import finetune

    result = finetune.run(
        finetune.load_recipe(recipe, overrides or []),
        output=output,
        resume=resume,
        overwrite=overwrite,
        allow_local_code=allow_local_code,
    )
    rows = [[r["name"], str(r["n"]), f"{r['accuracy']:.4f}"] for r in result.summary["results"]]
    _table(["result", "test images", "accuracy"], rows)
    typer.echo(f"saved in {result.directory}")


@app.command()
def predict(
    directory: RunDirectory,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Classify images with a trained model."""
    from finetune.inference.predictor import restore

    predictions = restore(directory, allow_local_code=allow_local_code).predict(images)
    if as_json:
        records = [
            {"image": str(i), "label": p.label, "labels": p.labels, "index": p.index, "probabilities": p.probabilities}
            for i, p in zip(images, predictions, strict=True)
        ]
        typer.echo(json.dumps(records, indent=1))
        return
    rows = [[str(i), p.label, f"{p.probabilities[p.label]:.4f}"] for i, p in zip(images, predictions, strict=True)]
    _table(["image", "label", "probability"], rows)


@app.command()
def evaluate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder.")],
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Measure on the test images of this source instead.")
    ] = None,
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Measure a trained model on its run's test images."""
    from finetune.evaluation.evaluate_run import evaluate_run

    found = evaluate_run(directory, data, allow_local_code=allow_local_code)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    _table(["test images", "accuracy", "loss"], [[str(found["n"]), f"{found['accuracy']:.4f}", f"{found['loss']:.4f}"]])
    if found["skipped"]:
        typer.echo(f"{found['skipped']} broken images are left out")


@app.command()
def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of finished runs.")],
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw their curves: .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set finished runs side by side: test results, speed and curves."""
    from finetune.report.compare import compare_runs, draw_curves

    found = compare_runs(directories)
    if figure is not None:
        draw_curves(found, figure)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    rows = []
    for run in found:
        best = max((value for _, value in run["curves"]["validation_accuracy"]), default=None)
        losses, speed = run["curves"]["train_loss"], run["images_per_second"]
        rows.append(
            [
                run["name"],
                f"{run['results']['accuracy']:.4f}",
                f"{run['results']['loss']:.4f}",
                "" if best is None else f"{best:.4f}",
                f"{losses[-1][1]:.4f}" if losses else "",
                "" if speed is None else f"{speed:,.0f}",
            ]
        )
    columns = ["run", "test accuracy", "test loss", "best validation", "last training loss", "images a second"]
    _table(columns, rows)
    if figure is not None:
        typer.echo(f"curves in {figure}")


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a bundled recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    as_json: AsJson = False,
) -> None:
    """Look at every image of a recipe's data: broken ones, classes, sizes, pictures that are in two splits."""
    from finetune.data.splits import load_splits
    from finetune.recipe import load_recipe
    from finetune.report.data import report

    loaded = load_recipe(recipe, overrides or [])
    found = report(load_splits(loaded.data, loaded.seed))
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    rows = [
        [
            name,
            f"{split['images']:,}",
            f"{min(split['per_class'].values()):,} - {max(split['per_class'].values()):,}",
            " - ".join("x".join(map(str, split["sizes"][key])) for key in ("smallest", "largest")),
            ", ".join(f"{mode} {count:,}" for mode, count in split["modes"].items()),
        ]
        for name, split in found["splits"].items()
    ]
    _table(["split", "images", "of each class", "sizes", "modes"], rows)
    names = found["classes"]
    typer.echo(f"classes   {len(names)}: {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}")
    for line in found["skipped"]:
        typer.echo(f"skipped   {line}")
    leaks = found["leakage"]
    typer.echo(f"leakage   {leaks['exact']} images are in two splits, {leaks['near']} more nearly so")
    for pair in leaks["examples"]:
        typer.echo(f"          {' = '.join(pair)}")


@app.command("ls")
def list_recipes() -> None:
    """List the bundled recipes."""
    from finetune import resources
    from finetune.recipe.source import purpose

    _table(["recipe", "purpose"], [[name, purpose(path)] for name, path in resources.recipes().items()])


@app.command("models")
def list_models() -> None:
    """List the model families, the layouts they are read from, and what was verified against PyTorch."""
    from finetune.models.registry import FAMILIES

    rows = [
        ["" if i else family.title, reader.layout, reader.label or reader.kinds, ", ".join(reader.verified)]
        for family in FAMILIES
        for i, reader in enumerate(family.readers)
    ]
    _table(["family", "layout", "model_type or architecture", "equal to PyTorch's"], rows)


@app.command()
def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|SOURCE|DIR",
            help="A recipe; a checkpoint's folder, a hub id (owner/name[@revision]) or builtin:NAME; a run's folder.",
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Of a recipe.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Of a checkpoint: another image size, in pixels.")] = None,
    param: Annotated[
        str | None, typer.Option(metavar="PATH", help="The values of a parameter, or of all below a path.")
    ] = None,
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Show what a recipe will train and what that costs, or what a pretrained or trained model consists of."""
    from finetune import resources
    from finetune.errors import RecipeError

    is_recipe = what in resources.recipes() or Path(what).suffix in (".yaml", ".yml")
    is_run = any((Path(what) / name).is_file() for name in ("run.json", "model.json", "model/model.json"))
    if (is_recipe or is_run) and image_size is not None:
        hint = f"; for {what} give backbone.image_size={image_size}" if is_recipe else ""
        raise RecipeError(f"--image-size is for checkpoints{hint}")
    if not is_recipe and overrides:
        raise RecipeError(
            f"{what} is not a recipe (a .yaml file, or a name of finetune ls): it takes no {overrides[0]}"
        )
    if is_recipe and param is not None:
        raise RecipeError(f"--param is for checkpoints and trained models; {what} has no values yet")
    if is_recipe:
        _plan_recipe(what, overrides or [], as_json, allow_local_code)
    elif is_run:
        _inspect_run(Path(what), param, as_json, allow_local_code)
    else:
        _inspect_source(what, image_size, param, as_json)


def _plan_recipe(recipe: str, overrides: list[str], as_json: bool, allow_local_code: bool) -> None:
    from finetune.recipe import load_recipe
    from finetune.report.plan import plan_recipe

    found = plan_recipe(load_recipe(recipe, overrides), allow_local_code=allow_local_code)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    columns = ["leaf", "shape", "partition", "optimizer", "peak rate", "decay", "batch norm"]
    for stage in found["stages"]:
        typer.echo(f"stage {stage['name']}")
        _table(columns, [_leaf_row(leaf) for leaf in stage["leaves"]])
        totals, step, device = stage["totals"], stage["step"], found["device"]
        megabytes = {name: f"{size / 1e6:,.1f}" for name, size in step["bytes"].items()}
        typer.echo(f"values    {totals['learns']:,} learn, {totals['frozen']:,} are frozen")
        typer.echo(f"step      {step['flops'] / 1e9:,.2f} GFLOP for a batch of {step['batch_size']}")
        typer.echo(
            f"memory    {megabytes['peak']} MB at the peak: {megabytes['arguments']} state, weights and images "
            f"({totals['optimizer_bytes'] / 1e6:,.1f} the optimizer's), {megabytes['temporary']} temporary"
        )
        typer.echo(
            f"batch     at most about {stage['largest_batch'] or 0:,} for {device['kind']} "
            f"with {device['memory_bytes'] / 1e9:,.1f} GB\n"
        )
    if not found["stages"]:
        typer.echo("no stage trains by gradient descent")


def _leaf_row(leaf: dict[str, Any]) -> list[str]:
    optimizer = leaf["optimizer"] or ""
    return [
        leaf["path"],
        "x".join(map(str, leaf["shape"])),
        leaf["partition"],
        f"{optimizer}, lora {leaf['lora']}" if leaf["lora"] else optimizer,
        "" if leaf["learning_rate"] is None else f"{leaf['learning_rate']:.3g}",
        f"{leaf['weight_decay']:g}" if leaf["weight_decay"] else "",
        leaf["batch_stats"] or "",
    ]


def _inspect_run(directory: Path, param: str | None, as_json: bool, allow_local_code: bool) -> None:
    from finetune.inference.predictor import restore
    from finetune.report.model import describe_images, list_leaves

    predictor = restore(directory, allow_local_code=allow_local_code)
    if param is not None:
        _show_values(predictor.variables, param, as_json)
        return
    found = {"classes": predictor.class_names, "image_spec": predictor.image_spec.to_json()}
    found |= list_leaves(predictor.variables)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    totals = _list_leaves(found)
    typer.echo(f"model     {type(predictor.model.backbone).__name__}, {len(predictor.class_names)} classes")
    typer.echo(f"values    {totals}")
    typer.echo(f"images    {describe_images(predictor.image_spec)}")


def _show_values(variables: Any, path: str, as_json: bool) -> None:
    import numpy as np

    from finetune.report.model import find_values

    found = find_values(variables, path)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for leaf in found:
        numbers = ", ".join(f"{name} {leaf[name]:.4g}" for name in ("mean", "std", "min", "max"))
        typer.echo(f"{leaf['path']}  {leaf['dtype']} {leaf['shape']}: {numbers}")
        typer.echo(np.array2string(np.array(leaf["values"]), precision=4, threshold=200, max_line_width=100))


def _list_leaves(found: dict[str, Any]) -> str:
    """Prints the table; gives the totals in words."""
    rows = [[leaf["path"], "x".join(map(str, leaf["shape"])), f"{leaf['size']:,}"] for leaf in found["leaves"]]
    _table(["leaf", "shape", "values"], rows)
    return ", ".join(f"{count:,} in {name}" for name, count in found["totals"].items())


def _inspect_source(source: str, image_size: int | None, param: str | None, as_json: bool) -> None:
    from finetune.models.backbone import load_backbone
    from finetune.report.model import describe_images, describe_transfer, summarize

    backbone = load_backbone(source, image_size=image_size)
    if param is not None:
        _show_values(backbone.variables, param, as_json)
        return
    summary = summarize(backbone)
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
        return
    totals = _list_leaves(summary)
    text = " with a text tower" if summary["text_tower"] else ""
    typer.echo(f"model     {summary['family']}{text}, layout of {summary['layout']}; {backbone.num_features} features")
    typer.echo(f"values    {totals}")
    typer.echo(f"images    {describe_images(backbone.image_spec)}")
    for i, line in enumerate(describe_transfer(backbone.report)):
        typer.echo(f"{'' if i else 'transfer':9} {line}")


def main() -> None:
    """Runs the command line. A mistake in the input is one message and exit code 2, never a traceback."""
    for library in ("absl", "asyncio"):  # Orbax logs every failure many times over; ours is the one message
        logging.getLogger(library).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # Pillow's; we refuse such images
    sys.unraisablehook = lambda _: None  # and TensorStore's threads repeat it where nobody can catch it
    from finetune.errors import FinetuneError, Interrupted

    try:
        app()
    except Interrupted as error:
        _stop(str(error), 128 + error.signal)
    except FinetuneError as error:
        _stop(f"error: {error}", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _stop(f"error: {where}{error.strerror or error}", 2)


def _stop(message: str, code: int) -> None:
    typer.echo(message, err=True)
    sys.exit(code)


def _table(columns: list[str], rows: list[list[Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    main()
