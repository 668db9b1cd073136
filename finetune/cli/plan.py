"""``finetune plan``"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from finetune.cli.options import AsJson, LocalCode, Overrides, RecipeName
from finetune.cli.tables import print_json, print_table, shape


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    parameters: Annotated[bool, typer.Option("--parameters", help="List each parameter, too.")] = False,
    as_json: AsJson = False,
    allow_local_code: LocalCode = False,
) -> None:
    """Show what a recipe trains, and what a step costs, before any image is read."""
    import finetune
    from finetune.compiled import keep_compiled_programs

    keep_compiled_programs()
    result = finetune.plan_recipe(finetune.load_recipe(recipe, overrides or []), allow_local_code=allow_local_code)
    if as_json:
        print_json(result)
        return
    for line in result["lines"]:
        typer.echo(line)
    for stage in result["stages"]:
        typer.echo(f"stage {stage['name']}")
        columns = ["partition", "parameters", "status", "optimizer", "peak learning rate"]
        print_table(columns, [_partition_row(partition) for partition in stage["partitions"]])
        if parameters:
            columns = ["parameter", "shape", "partition", "optimizer", "peak learning rate", "decay", "batch norm"]
            print_table(columns, [_parameter_row(leaf) for leaf in stage["leaves"]])
        _print_costs(stage, result["device"])
    if not result["stages"]:
        typer.echo("no stage trains by gradient descent")


def _print_costs(stage: dict[str, Any], device: dict[str, Any]) -> None:
    totals, step = stage["totals"], stage["step"]
    megabytes = {name: f"{size / 1e6:,.1f}" for name, size in step["bytes"].items()}
    devices = f"{device['count']} x {device['kind']}" if device["count"] > 1 else device["kind"]
    each = " of each device" if device["count"] > 1 else ""
    typer.echo(f"values    {totals['trainable']:,} trainable, {totals['frozen']:,} frozen")
    typer.echo(f"step      {step['flops'] / 1e9:,.2f} GFLOP for a batch of {step['batch_size']}")
    typer.echo(
        f"memory    {megabytes['peak']} MB at the peak{each}: {megabytes['arguments']} state, weights and images "
        f"({totals['optimizer_bytes'] / 1e6:,.1f} the optimizer's), {megabytes['temporary']} temporary"
    )
    if reason := stage["frozen_cache"]["reason"]:
        typer.echo(f"frozen    {reason}")
    typer.echo(
        f"batch     at most about {stage['largest_batch'] or 0:,} for {devices} "
        f"with {device['memory_bytes'] / 1e9:,.1f} GB\n"
    )


def _partition_row(partition: dict[str, Any]) -> list[str]:
    status = "frozen" if partition["frozen"] else "trainable"
    if partition["lora"]:
        status = f"frozen, lora of rank {partition['lora']} trainable"
    return [partition["name"], f"{partition['parameters']:,}", status, partition["optimizer"] or "", _rate(partition)]


def _parameter_row(leaf: dict[str, Any]) -> list[str]:
    decay = f"{leaf['weight_decay']:g}" if leaf["weight_decay"] else ""
    norm = leaf["batch_norm"] or ""
    optimizer = leaf["optimizer"] or "frozen"
    if leaf["lora"]:
        optimizer += f", lora {leaf['lora']}"
    return [leaf["path"], shape(leaf["shape"]), leaf["partition"], optimizer, _rate(leaf), decay, norm]


def _rate(record: dict[str, Any]) -> str:
    return "" if record["learning_rate"] is None else f"{record['learning_rate']:.3g}"
