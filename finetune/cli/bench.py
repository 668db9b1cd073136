"""``finetune bench``"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from finetune.cli.options import AsJson, LocalCode, Overrides, RecipeName
from finetune.cli.tables import print_json, print_rows


def bench(
    recipe: RecipeName,
    overrides: Overrides = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Random images instead of the recipe's, which may be missing.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Timed steps of each stage.  [default: 10, in 10 s at most]")
    ] = None,
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Measure each stage of a recipe here: step time, images/s, share of peak, memory, and what bounds it."""
    import finetune

    loaded = finetune.load_recipe(recipe, overrides or [])
    result = finetune.bench_recipe(loaded, synthetic=synthetic, steps=steps, allow_local_code=allow_local_code)
    if as_json:
        print_json(result)
        return
    device = result["device"]
    several = f"{device['count']} x " if device["count"] > 1 else ""
    typer.echo(f"{result['name']} on {several}{device['kind']}: loaded in {result['load_seconds']:.1f} s")
    measured = [pair for stage in result["stages"] for pair in _parts(stage)]
    if not measured:
        typer.echo("no stage to measure")
        return
    print_rows([_speed_row(name, part) for name, part in measured])
    print_rows([_device_row(name, part) for name, part in measured])
    for name, part in measured:
        typer.echo(f"{name}: {part['advice']}")


def _parts(stage: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What was measured of a stage: extracting its features, its steps, or both."""
    extraction = [(f"{stage['name']}: features", stage["extraction"])] if "extraction" in stage else []
    return extraction + ([(stage["name"], stage)] if "step_seconds" in stage else [])


def _speed_row(name: str, part: dict[str, Any]) -> dict[str, str]:
    step, memory = part["step_seconds"], part["memory"]
    return {
        "stage": name,
        "batch": f"{part['batch_size']:,}",
        "compile": f"{part['compile_seconds']:.1f} s",
        "first step after": f"{part['first_step_seconds']:.1f} s",
        "step (range)": f"{_ms(step['median'])} ({_ms(step['fastest'])} - {_ms(step['slowest'])}) ms",
        "images/s": _rate(part["images_per_second"]),
        "input alone": _rate(part["input_images_per_second"]),
        "both": _rate(part["fed_images_per_second"]),
        "peak memory": f"{memory['peak_bytes'] / 1e6:,.1f} MB",
    }


def _device_row(name: str, part: dict[str, Any]) -> dict[str, str]:
    peak = part["peak"]
    return {
        "stage": name,
        "a step": f"{part['flops'] / 1e9:,.2f} GFLOP",
        "compute": part["compute_dtype"],
        "speed": f"{part['flops_per_second'] / 1e12:,.3g} TFLOP/s",
        "share of peak": f"{part['share_of_peak']:.1%}",
        "peak": f"{peak['flops_per_second'] / 1e12:,.3g} TFLOP/s in {peak['format']}, {peak['source']}",
        "memory by": part["memory"]["source"],
    }


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.{1 if seconds < 1 else 0}f}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.{0 if value >= 100 else 1}f}"
