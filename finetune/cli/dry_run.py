"""What ``finetune run --dry-run`` prints."""

from __future__ import annotations

from typing import Any

import typer

from finetune.cli.tables import print_rows

_PARTS = {
    "load": "loading",
    "compile": "compiling",
    "features": "features",
    "train": "training",
    "evaluate": "evaluation",
}


def print_dry_run(result: dict[str, Any]) -> None:
    """The run's own first lines, a table of its stages, and what it takes in all."""
    for line in result["lines"]:
        typer.echo(line)
    rows = [_row(f"{stage['name']}{kind}", stage[part]) for stage in result["stages"] for part, kind in _kinds(stage)]
    if rows:
        print_rows(rows)
    seconds, disk = result["seconds"], result["disk_bytes"]
    parts = ", ".join(f"{words} {_duration(seconds[name])}" for name, words in _PARTS.items())
    typer.echo(f"time      about {_duration(seconds['total'])} on this machine: {parts}")
    memory = max((part["memory_bytes"] for part in _parts(result)), default=0)
    typer.echo(f"memory    {_size(memory)} of {_size(result['device']['memory_bytes'])} of each device")
    sizes = ", ".join(f"{name} {_size(disk[name])}" for name in ("model", "states", "features") if disk[name])
    typer.echo(f"disk      up to {sizes}; {_size(disk['free'])} are free")
    for stage in result["stages"]:
        if stage["step"] is not None and not stage["step"]["loss"] < float("inf"):
            typer.echo(f"{stage['name']}: the loss of the first batch is not finite: the run would diverge")
    output = result["output"]
    typer.echo(output["problem"] or f"nothing is written; the run goes to {output['directory']}")


def _kinds(stage: dict[str, Any]) -> list[tuple[str, str]]:
    return [(part, kind) for part, kind in (("extraction", ": features"), ("step", "")) if stage[part] is not None]


def _parts(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [stage[part] for stage in result["stages"] for part, _ in _kinds(stage)]


def _row(name: str, part: dict[str, Any]) -> dict[str, str]:
    return {
        "stage": name,
        "batches": f"{part['batches']:,}",
        "of images": f"{part['batch_size']:,}",
        "compile": f"{part['compile_seconds']:.1f} s",
        "a batch": f"{1e3 * part['seconds_per_batch']:,.1f} ms",
        "images/s": f"{part['batch_size'] / part['seconds_per_batch']:,.0f}",
        "first loss": f"{part['loss']:.4f}" if "loss" in part else "",
        "memory": _size(part["memory_bytes"]),
        "in all": _duration(part["batches"] * part["seconds_per_batch"]),
    }


def _size(count: float) -> str:
    from finetune.training.memory import describe_bytes

    return describe_bytes(count)


def _duration(seconds: float) -> str:
    from finetune.run.epochs import duration

    return duration(seconds)
