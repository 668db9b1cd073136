"""What do the verdict and the report cost, and is a page of a hundred classes still light?

    python -m benchmarks.report   # table, and benchmarks/results/report.json

Cost: the recipe `quickstart`, timed from its first import, and how much of that goes into intervals, paired tests,
calibration, predictions.parquet and report.html. Page: a run on 100 classes and 10,000 drawn test images, its size and
the time until Chromium, driven by playwright, has loaded it (the median of five).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, TRAIN, TEST = 100, 40, 100  # images of each class
_OF_VERDICT = ("describe_result", "compare_results", "conclude", "fit_confidence", "describe_calibration")
_OF_REPORT = ("write_report", "describe_reliability")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "report.json")
    args = parser.parse_args()
    if args.chromium is None:
        parser.error("needs Chromium: apt install chromium, or --chromium FILE")
    with tempfile.TemporaryDirectory() as folder:
        results = {"quickstart": quickstart(Path(folder)), "page": page(Path(folder), args.chromium)}
    args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


def quickstart(folder: Path) -> dict[str, float]:
    """Seconds of the whole run, and of verdict and report within."""
    start = time.perf_counter()
    import finetune
    from finetune.run import session

    spent = {"verdict": 0.0, "report": 0.0}
    for part, names in (("verdict", _OF_VERDICT), ("report", _OF_REPORT)):
        for name in names:
            setattr(session, name, _timed(getattr(session, name), spent, part))
    add = session.Predictions.add
    session.Predictions.add = _timed(add, spent, "verdict")  # type: ignore[method-assign]
    finetune.run(finetune.load_recipe("quickstart"), output=folder / "quickstart", quiet=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **spent, "share": sum(spent.values()) / seconds}


def _timed(function: Callable[..., Any], spent: dict[str, float], part: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - start

    return run


def page(folder: Path, chromium: str) -> dict[str, Any]:
    """Of the run on many images: megabytes, and seconds until it is loaded."""
    import finetune

    result = finetune.run(finetune.load_recipe(_recipe(folder)), output=folder / "many", quiet=True)
    last = result.summary["results"][-1]
    seconds = _load(result.report, chromium)
    facts = {"classes": CLASSES, "test_images": last["n"], "accuracy": last["accuracy"]}
    megabytes = result.report.stat().st_size / 1e6
    return {**facts, "megabytes": megabytes, "seconds_to_load": statistics.median(seconds), "of": seconds}


def _recipe(folder: Path) -> Path:
    """A recipe beside its images: a pattern for each class under noise, so that about four in ten are mistaken."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), TRAIN + TEST)
    patterns = rng.normal(size=(CLASSES, 7, 7)).repeat(4, axis=1).repeat(4, axis=2)
    images = 128 + 14 * patterns[labels] + rng.normal(0, 100, (len(labels), 28, 28))
    names = np.array([f"class {i}" for i in range(CLASSES)])
    pixels = images.clip(0, 255).astype(np.uint8)
    np.savez(folder / "images.npz", images=pixels, labels=labels, class_names=names)
    partition = {"match": ".*", "optimizer": "sgd", "learning_rate": 0.3, "schedule": "cosine"}
    recipe = {
        "backbone": {
            "module": "finetune.models.lenet:LeNet",
            "kwargs": {"num_classes": CLASSES, "norm": True},
            "image": {"size": 28, "channels": 1},
        },
        "head": {"init": "none"},
        "data": {"source": "images.npz", "validation": 0.2, "test": TEST / (TRAIN + TEST)},
        "stages": [{"epochs": 5, "batch_size": 64, "partitions": [partition]}],
    }
    (folder / "many.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder / "many.yaml"


def _load(file: Path, chromium: str) -> list[float]:
    """Seconds from the start of navigation to the end of the load event, five times."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        seconds = []
        for _ in range(5):
            opened = browser.new_page(viewport={"width": 1280, "height": 900})
            opened.goto(file.absolute().as_uri(), wait_until="load")
            opened.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
            seconds.append(opened.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000)
            opened.close()
        browser.close()
    return seconds


if __name__ == "__main__":
    main()
