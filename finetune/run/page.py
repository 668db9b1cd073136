"""``report.html``: a run as one page that loads nothing else, written at its end, and its charts as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.files import write_text
from finetune.folder.run_folder import FINISHED, RunFolder
from finetune.page.html import render
from finetune.recipe.source import dump_recipe
from finetune.run.curves import curves_of, draw_curves
from finetune.run.page_facts import (
    describe_batches,
    describe_curves,
    describe_data,
    describe_interpolation,
    describe_stages,
    describe_weights,
)
from finetune.run.page_results import (
    describe_classes,
    describe_confusion,
    show_mistakes,
    show_reliability,
)
from finetune.run.predictions import Predictions
from finetune.run.progress import Progress
from finetune.run.setup import RunSetup


def write_report(setup: RunSetup, folder: RunFolder, summary: Mapping[str, Any], display: Progress) -> None:
    """Writes the page and its figures. Where the disk takes no more, a line says so: the results are saved already.

    Args:
        summary: as in summary.json, of a run that has finished or diverged.
    """
    try:
        with display.busy("writing the report"):
            write_text(folder.report, render("run.html", **_gather(setup, folder, summary)))
    except OSError as error:
        reason = error.strerror or error
        display.say(f"{folder.report}: cannot be written: {reason}; the results are saved; --resume writes it later")


def _gather(setup: RunSetup, folder: RunFolder, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the page shows."""
    results: Sequence[Mapping[str, Any]] = summary["results"]
    kept = (summary["kept"] or {}).get("stage")
    metric = "mean_average_precision" if setup.splits.multi_label else "accuracy"
    return {
        "name": setup.recipe.name,
        "finished": summary["status"] == FINISHED,
        "verdict": summary.get("verdict") or summary.get("reason") or "",
        "origin": setup.recipe.backbone.origin,
        "multi_label": setup.splits.multi_label,
        "results": results,
        "kept": kept,
        "calibrated": (summary.get("calibration") or {}).get("method", "none") != "none",
        "kept_result": next((result for result in results if result["name"] == kept), None),
        "also": summary.get("also") or {},
        "curves": _curves(folder, setup.recipe.name, metric) + describe_interpolation(summary.get("interpolation")),
        **_of_kept_model(setup, folder, kept, summary.get("calibration")),
        "batches": describe_batches(setup, folder),
        "data": describe_data(setup),
        "stages": describe_stages(setup),
        "weights": describe_weights(summary.get("layer_change") or {}, folder),
        "frozen": summary.get("frozen"),
        "about": folder.about(),
        "seconds": summary.get("seconds") or {},
        "weights_sha256": summary.get("weights_sha256"),
        "recipe": dump_recipe(setup.recipe),
    }


def _curves(folder: RunFolder, name: str, metric: str) -> list[Any]:
    records = folder.records()
    draw_curves([{"name": name, "curves": curves_of(records, metric)}], folder.figure("curves"))
    return describe_curves(records, metric)


def _of_kept_model(
    setup: RunSetup, folder: RunFolder, kept: str | None, calibration: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the kept model says of the test images; nothing where it was not measured, or that is lost."""
    splits = setup.splits
    logits = None if kept is None else Predictions(folder.predictions, splits.test).logits(kept)
    if logits is None:
        return {"classes": [], "confusion": None, "reliability": [], "mistakes": None}
    return {
        "classes": describe_classes(logits, splits, (calibration or {}).get("thresholds")),
        "confusion": describe_confusion(logits, splits, folder),
        "reliability": show_reliability(logits, splits.test.labels, calibration, folder),
        "mistakes": show_mistakes(logits, splits, folder),
    }
