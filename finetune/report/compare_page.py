"""Finished runs side by side as one page that loads nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.files import json_text, write_text
from finetune.page.figures import svg
from finetune.page.html import render
from finetune.report.compare import compare_runs
from finetune.report.paired import KeptPredictions, PairedRuns
from finetune.run.curves import curve_charts

_LEVEL = 0.05  # of the tests: from here on, a difference may be chance


def write_comparison(directories: Sequence[str | Path], path: Path) -> None:
    """Writes the page.

    Raises:
        CheckpointError: a folder holds no finished run.
        OSError: the file cannot be written.
    """
    runs = with_unique_names(compare_runs(directories))
    kept = KeptPredictions(directories)
    paired, names = kept.paired(), [run["name"] for run in runs]
    same, classes = kept.by_class()
    charts = curve_charts(runs)
    page = render(
        "compare.html",
        runs=runs,
        several=[run["results"]["metric"] != "accuracy" for run in runs],
        verdict=_conclude(names, paired),
        curves=[
            svg(chart, f"Curves of the {title} by epoch, of {', '.join(names)}") for title, chart in charts.items()
        ],
        settings=_settings(runs),
        paired=[
            {
                "name": names[pair.second],
                "other": names[pair.first],
                "pair": pair,
                "points": pair.points if pair.test else None,
            }
            for pair in paired
        ],
        compared=[names[run] for run in same],
        by_precision=bool(same) and runs[0]["results"]["metric"] != "accuracy",
        classes=classes,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def with_unique_names(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of :func:`compare_runs`; where several folders have the same name, by their path."""
    counts = Counter(run["name"] for run in runs)
    return [run | {"name": run["directory"] if counts[run["name"]] > 1 else run["name"]} for run in runs]


def _conclude(names: Sequence[str], paired: Sequence[PairedRuns]) -> list[str]:
    """A sentence for each pair that compares, if they are few; else how many of the tests show a difference."""
    tested = [pair for pair in paired if pair.test]
    if len(tested) > 3:
        shown = sum((pair.adjusted or 0.0) < _LEVEL for pair in tested)
        return [f"{shown} of {len(tested)} pairs of runs differ by more than chance (adjusted p below {_LEVEL})."]
    return [_sentence(names, pair) for pair in tested]


def _sentence(names: Sequence[str], pair: PairedRuns) -> str:
    better, worse = (pair.second, pair.first) if pair.points >= 0 else (pair.first, pair.second)
    adjusted = pair.adjusted or 0.0
    numbers = f"{names[better]}: {abs(pair.points):+.1f} points of accuracy over {names[worse]} (p = {adjusted:.2g})"
    return (
        f"{numbers}." if adjusted < _LEVEL else f"{numbers}, no difference that {pair.images:,} test images can show."
    )


def _settings(runs: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the key and what each run has there, as a recipe has it."""
    return [(key, *(setting_text(run["settings"][key]) for run in runs)) for key in runs[0]["settings"]]


def setting_text(value: Any) -> str:
    """As a recipe has it; empty where it has none."""
    return "" if value is None else json_text(value).strip('"')
