"""``finetune inspect``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.options import AsJson, LocalCode
from finetune.cli.tables import print_json, print_table, shape


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE|DIR",
            help="A checkpoint: its folder, a hub id (owner/name[@revision]) or builtin:NAME. Or a run's folder, or a "
            "model bundle.",
        ),
    ],
    image_size: Annotated[int | None, typer.Option(help="Adapt a checkpoint to this image size, in pixels.")] = None,
    param: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Show the values of a parameter, or of all below a path."),
    ] = None,
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Show the parameters of a pretrained or a trained model, and the images it takes."""
    from finetune.errors import RecipeError
    from finetune.folder.run_folder import is_run_or_bundle

    if _is_recipe(what):
        raise RecipeError(f"{what}: a recipe, not a model; use: finetune plan {what}")
    if not is_run_or_bundle(Path(what)):
        _inspect_source(what, image_size, param, as_json)
    elif image_size is not None:
        raise RecipeError("--image-size is for pretrained checkpoints; a trained model has the size it was trained at")
    else:
        _inspect_run(Path(what), param, as_json, allow_local_code)


def _is_recipe(what: str) -> bool:
    from finetune import resources

    return not Path(what).is_dir() and (Path(what).suffix in (".yaml", ".yml") or what in resources.recipes())


def _inspect_run(directory: Path, param: str | None, as_json: bool, allow_local_code: bool) -> None:
    from finetune.inference.predictor import restore
    from finetune.report.model import describe_images, list_leaves

    predictor = restore(directory, allow_local_code=allow_local_code)
    if param is not None:
        _print_values(predictor.variables, param, as_json)
        return
    description = {"classes": predictor.class_names, "image_spec": predictor.image_spec.to_json()}
    description |= list_leaves(predictor.variables)
    if as_json:
        print_json(description)
        return
    totals = _print_leaves(description)
    typer.echo(f"model     {type(predictor.model.backbone).__name__}, {len(predictor.class_names)} classes")
    typer.echo(f"values    {totals}")
    typer.echo(f"images    {describe_images(predictor.image_spec)}")


def _inspect_source(source: str, image_size: int | None, param: str | None, as_json: bool) -> None:
    from finetune.models.backbone import load_backbone
    from finetune.report.model import describe_images, describe_transfer, summarize

    backbone = load_backbone(source, image_size=image_size)
    if param is not None:
        _print_values(backbone.variables, param, as_json)
        return
    summary = summarize(backbone)
    if as_json:
        print_json(summary)
        return
    totals = _print_leaves(summary)
    text = " with a text tower" if summary["text_tower"] else ""
    typer.echo(f"model     {summary['family']}{text}, layout of {summary['layout']}; {backbone.num_features} features")
    typer.echo(f"values    {totals}")
    typer.echo(f"images    {describe_images(backbone.image_spec)}")
    if summary["classes"]:
        typer.echo(f"head      {summary['classes']} classes, kept with head.init=pretrained")
    typer.echo(f"license   {summary['license'] or 'not stated in its files'}")
    for i, line in enumerate(describe_transfer(backbone.report)):
        typer.echo(f"{'' if i else 'transfer':9} {line}")


def _print_values(variables: Any, path: str, as_json: bool) -> None:
    import numpy as np

    from finetune.report.model import find_values

    leaves = find_values(variables, path)
    if as_json:
        print_json(leaves)
        return
    for leaf in leaves:
        numbers = ", ".join(f"{name} {leaf[name]:.4g}" for name in ("mean", "std", "min", "max"))
        typer.echo(f"{leaf['path']}  {leaf['dtype']} {leaf['shape']}: {numbers}")
        typer.echo(np.array2string(np.array(leaf["values"]), precision=4, threshold=200, max_line_width=100))


def _print_leaves(description: dict[str, Any]) -> str:
    """Prints the table of leaves; returns the totals in words."""
    rows = [[leaf["path"], shape(leaf["shape"]), f"{leaf['size']:,}"] for leaf in description["leaves"]]
    print_table(["leaf", "shape", "values"], rows)
    return ", ".join(f"{count:,} in {name}" for name, count in description["totals"].items())
