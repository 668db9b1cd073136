"""The curves of runs: training loss and validation metric over the epochs, as numbers and in a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError


def draw_curves(runs: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draws each curve that some run has; nothing, and False, where none has any.

    Args:
        runs: each with its ``name`` and ``curves``, from :func:`curves_of`.
        path: of the figure; its suffix names the format, such as .png, .svg or .pdf.

    Raises:
        CheckpointError: a format that matplotlib does not write.
    """
    from matplotlib.figure import Figure

    names = dict.fromkeys(name for run in runs for name, points in run["curves"].items() if points)
    panels = sorted(names, key=lambda name: (name == "learning_rate", name != "train_loss"))
    if not panels:
        return False
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, run in enumerate(runs):
            if points := run["curves"].get(curve):
                marker = "." if len(points) < 30 else None
                axes.plot(*zip(*points, strict=True), label=run["name"], marker=marker, color=f"C{i % 10}")
        axes.set(title=curve.replace("train_", "training ").replace("_", " "), xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return True


def curves_of(records: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[list[float]]]:
    """Lists of [epoch, value], with epochs counted over all stages.

    Args:
        records: of ``metrics.jsonl``.
        metric: name of the one that decides.

    Returns:
        ``train_loss``, ``learning_rate`` (the highest of all partitions) and, on the validation split,
        ``validation_<metric>``; those without values are empty.
    """
    validation = f"validation_{metric}"
    curves: dict[str, list[list[float]]] = {"train_loss": [], validation: [], "learning_rate": []}
    stage, before, last = None, 0.0, 0.0
    for record in records:
        if "epoch" not in record:
            continue
        if record["stage"] != stage:
            stage, before = record["stage"], last
        last = before + record["epoch"]
        if record["split"] == "train" and "loss" in record:
            curves["train_loss"].append([last, record["loss"]])
            curves["learning_rate"].append([last, max(record["learning_rate"].values())])
        elif record["split"] == "validation":
            curves[validation].append([last, record[metric]])
    return curves
