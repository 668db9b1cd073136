"""The curves of runs: loss, validation metric and learning rate over the epochs, as numbers and in figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError
from finetune.page.figures import Chart, Line, line_chart, save_charts

Curves = dict[str, list[list[float]]]


def draw_curves(runs: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draws each curve that some run has; nothing, and False, where none has any.

    Args:
        runs: each with its ``name`` and ``curves``, from :func:`curves_of`.
        path: of the figure; its suffix names the format, such as .png, .svg or .pdf.

    Raises:
        CheckpointError: a format that matplotlib does not write.
    """
    charts = list(curve_charts(runs).values())
    if not charts:
        return False
    try:
        save_charts(path, charts)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return True


def curve_charts(runs: Sequence[Mapping[str, Any]]) -> dict[str, Chart]:
    """A chart for each curve that some run has, by title: the training loss first, the learning rate last.

    The loss on the validation images, where it is among the curves, is dashed beside that in training.
    """
    names = dict.fromkeys(name for run in runs for name, points in run["curves"].items() if points)
    lines: dict[str, list[Line]] = {}
    for name in sorted(names, key=lambda name: (name == "learning_rate", name != "train_loss")):
        dashed = name == "validation_loss" and "train_loss" in names
        title = "train_loss" if dashed else name
        for i, run in enumerate(runs):
            if points := run["curves"].get(name):
                label = f"{run['name']}, validation" if dashed else run["name"]
                lines.setdefault(title, []).append(Line(label, points, i, dashed))
    charts = {}
    for name, each in lines.items():
        both = any(line.dashed for line in each)
        title = "loss" if both else name.replace("train_", "training ").replace("_", " ")
        charts[title] = line_chart(title, each)
    return charts


def curves_of(records: Sequence[Mapping[str, Any]], metric: str) -> Curves:
    """Lists of [epoch, value], with epochs counted over all stages.

    Args:
        records: of ``metrics.jsonl``.
        metric: name of the one that decides.

    Returns:
        ``train_loss``, ``learning_rate`` (the highest of all partitions) and, on the validation split,
        ``validation_<metric>``; those without values are empty.
    """
    stages = curves_by_stage(records, metric)
    names = ("train_loss", f"validation_{metric}", "learning_rate")
    return {name: [point for stage in stages for point in stage["curves"][name]] for name in names}


def curves_by_stage(records: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The ``name`` and the ``curves`` of each stage that has epochs: those of :func:`curves_of`, and
    ``validation_loss``."""
    stages: dict[str, Curves] = {}
    before, last = 0.0, 0.0
    for record in records:
        if "epoch" not in record:
            continue
        if record["stage"] not in stages:
            before = last
            names = ("train_loss", "validation_loss", f"validation_{metric}", "learning_rate")
            stages[record["stage"]] = {name: [] for name in names}
        curves, last = stages[record["stage"]], before + record["epoch"]
        if record["split"] == "train" and record.get("loss") is not None:
            curves["train_loss"].append([last, record["loss"]])
            curves["learning_rate"].append([last, max(record["learning_rate"].values())])
        elif record["split"] == "validation":
            for name in {"loss", metric}:
                if record[name] is not None:
                    curves[f"validation_{name}"].append([last, record[name]])
    return [{"name": name, "curves": curves} for name, curves in stages.items()]
