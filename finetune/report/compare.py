"""Finished runs side by side: test results, speed, and curves in one figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError
from finetune.run.folder import RunFolder


def compare_runs(directories: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Plain JSON values about each run, in the order of the folders.

    Returns:
        For each run its ``name``; its ``directory``; ``results``, the last of its test results, whose ``metric`` names
        the metric that decides (``accuracy``, or ``mean_average_precision`` for images with several labels);
        ``images_per_second`` in training: the median over the log without the first entry, which includes
        compilation, or None where the log is too short; and ``curves``: lists of [epoch, value], with epochs counted
        over all stages, for ``train_loss``, ``learning_rate`` (the highest of all partitions) and, on the validation
        split, the deciding metric: ``validation_accuracy`` or ``validation_mean_average_precision``.

    Raises:
        CheckpointError: a folder holds no finished run.
    """
    return [_describe(Path(directory)) for directory in directories]


def draw_curves(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws training loss and validation metric over the epochs; runs of different metrics get a panel for each metric.

    Args:
        runs: from :func:`compare_runs`.
        path: of the figure; its suffix names the format, such as .png, .svg or .pdf.

    Raises:
        CheckpointError: a format that matplotlib does not write.
    """
    from matplotlib.figure import Figure

    panels = ["train_loss", *dict.fromkeys(f"validation_{run['results']['metric']}" for run in runs)]
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for i, run in enumerate(runs):
            if points := run["curves"].get(curve):
                marker = "." if len(points) < 30 else None
                axes.plot(*zip(*points, strict=True), label=run["name"], marker=marker, color=f"C{i % 10}")
        axes.set(title=curve.replace("train_", "training ").replace("_", " "), xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _describe(directory: Path) -> dict[str, Any]:
    folder = RunFolder(directory)
    summary = folder.summary() if folder.holds_run() else None
    if summary is None:
        state = "an unfinished run" if folder.holds_run() else "not a run's folder"
        raise CheckpointError(f"{directory}: {state}; give the folder of a run that has finished")
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
    validation = f"validation_{metric}"
    curves: dict[str, list[list[float]]] = {"train_loss": [], validation: [], "learning_rate": []}
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
            curves[validation].append([last, record[metric]])
    return curves
