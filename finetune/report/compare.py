"""Finished runs side by side: test results, speed, and curves in one figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError
from finetune.folder.run_folder import RunFolder, dotted
from finetune.run.curves import curves_of


def compare_runs(directories: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Plain JSON values about each run, in the order of the folders.

    Returns:
        For each run its ``name``; its ``directory``; ``results``, the test results of the model that it kept, whose
        ``metric`` names the metric that decides (``accuracy``, or ``mean_average_precision`` for images with several
        labels); ``settings``, what its recipe says where the recipes differ, by dotted key;
        ``images_per_second`` in training: the median over the log without the first entry, which includes
        compilation, or None where the log is too short; and ``curves``: lists of [epoch, value], with epochs counted
        over all stages, for ``train_loss``, ``learning_rate`` (the highest of all partitions) and, on the validation
        split, the deciding metric: ``validation_accuracy`` or ``validation_mean_average_precision``.

    Raises:
        CheckpointError: a folder holds no finished run.
    """
    folders = [RunFolder(directory) for directory in directories]
    runs = [_describe(folder) for folder in folders]
    recipes = [dotted(folder.recipe().model_dump(exclude={"name"})) for folder in folders]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    different = [key for key in keys if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)]
    return [
        {**run, "settings": {key: recipe.get(key) for key in different}}
        for run, recipe in zip(runs, recipes, strict=True)
    ]


def _describe(folder: RunFolder) -> dict[str, Any]:
    directory = folder.directory
    summary = folder.summary() if folder.holds_run() else None
    if summary is None:
        state = "an unfinished run" if folder.holds_run() else "not a run's folder"
        raise CheckpointError(f"{directory}: {state}; give the folder of a run that has finished")
    records = folder.records()
    results = next(result for result in summary["results"] if result["name"] == summary["kept"]["stage"])
    speeds = [record["images_per_second"] for record in records if "grad_norm" in record]
    return {
        "name": directory.absolute().name,
        "directory": str(directory),
        "results": results,
        "images_per_second": statistics.median(speeds[1:]) if len(speeds) > 1 else None,
        "curves": curves_of(records, results["metric"]),
    }
