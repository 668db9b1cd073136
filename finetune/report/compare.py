"""Finished runs side by side: results, speed, and curves in one figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError
from finetune.run.folder import RunFolder


def compare_runs(directories: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Plain JSON values about each run, in the order given.

    Returns:
        For each its ``name``, ``directory``, the last of its test ``results``, ``images_per_second`` in training (the
        median over the log, without the first entry, which compiles; None where it is too short), and ``curves``: lists
        of [epoch, value], epochs counted over all stages, for ``train_loss``, ``validation`` (of the metric that
        ``results`` names) and ``learning_rate`` (the highest of all partitions).

    Raises:
        CheckpointError: a folder without a finished run.
    """
    return [_describe(Path(directory)) for directory in directories]


def draw_curves(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes a figure of what :func:`compare_runs` gave: training loss and validation metric over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    metrics = dict.fromkeys(run["results"]["metric"].replace("_", " ") for run in runs)
    panels = (("train_loss", "training loss"), ("validation", f"validation {', '.join(metrics)}"))
    for axes, (key, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for run in runs:
            if points := run["curves"][key]:
                axes.plot(*zip(*points, strict=True), label=run["name"], marker="." if len(points) < 30 else None)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:  # a format that matplotlib does not write
        raise CheckpointError(f"{path}: {error}") from None


def _describe(directory: Path) -> dict[str, Any]:
    folder = RunFolder(directory)
    summary = folder.summary() if folder.holds_run() else None
    if summary is None:
        state = "an unfinished run" if folder.holds_run() else "no run's folder"
        raise CheckpointError(f"{directory}: {state}; give what finetune run wrote")
    records, results = folder.records(), summary["results"][-1]
    speeds = [record["images_per_second"] for record in records if "images_per_second" in record]
    return {
        "name": directory.absolute().name,
        "directory": str(directory),
        "results": results,
        "images_per_second": statistics.median(speeds[1:]) if len(speeds) > 1 else None,
        "curves": _curves(records, results["metric"]),
    }


def _curves(records: Sequence[dict[str, Any]], metric: str) -> dict[str, list[list[float]]]:
    curves: dict[str, list[list[float]]] = {"train_loss": [], "validation": [], "learning_rate": []}
    stage, before, last = None, 0.0, 0.0
    for record in records:
        if "epoch" not in record:
            continue
        if record["stage"] != stage:
            stage, before = record["stage"], last
        last = before + record["epoch"]
        if record["split"] == "train":
            curves["train_loss"].append([last, record["loss"]])
            curves["learning_rate"].append([last, max(record["learning_rate"].values())])
        else:
            curves["validation"].append([last, record[metric]])
    return curves
