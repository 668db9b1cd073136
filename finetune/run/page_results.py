"""What the kept model says of the test images, for the run's page: classes, confusions, reliability and mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.labeled_images import Split, count_classes
from finetune.data.splits import Splits
from finetune.errors import DataError
from finetune.evaluation.per_class import (
    class_results,
    confusion_matrix,
    most_confused,
    most_mistaken,
    worst_mistakes,
)
from finetune.evaluation.reliability import reliability_bins
from finetune.evaluation.verdict import predicted, probabilities
from finetune.folder.run_folder import RunFolder
from finetune.images.grid import save_image_grid
from finetune.images.open import open_image
from finetune.page.figures import reliability_chart, save_charts, svg
from finetune.page.heat_map import ConfusionMatrix, heat_map, save_heat_map
from finetune.page.html import picture

_PAIRS = 10  # of confused classes that are listed
_MISTAKES = 24  # images that are shown
_MATRIX = 100  # classes that a confusion matrix shows at most
_WITHIN = {"validation": "validation images, in-sample", "test": "test images, held out"}  # of what is calibrated


def describe_classes(
    logits: np.ndarray, splits: Splits, thresholds: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """A record for each class, those of the least recall (or average precision) first, those without images last.

    Args:
        thresholds: from which on ``predict`` says that an image is of a class, where images have several.
    """
    test, names = splits.test.labels, splits.class_names
    trained = count_classes(splits.train.labels, len(names)).tolist()
    results = class_results(predicted(logits, test), test, logits)
    chosen: Sequence[float | None] = thresholds or [None] * len(names)
    records = [
        {"name": name, "trained": count, "threshold": threshold, **vars(result)}
        for name, count, threshold, result in zip(names, trained, chosen, results, strict=True)
    ]
    return sorted(records, key=_rank)


def _rank(record: Mapping[str, Any]) -> float:
    value = record["recall"] if record["average_precision"] is None else record["average_precision"]
    return 2.0 if value is None else value


def describe_confusion(logits: np.ndarray, splits: Splits, folder: RunFolder) -> dict[str, Any] | None:
    """The matrix as a picture, and the most confused pairs; None where images have several labels."""
    labels, names = splits.test.labels, splits.class_names
    if labels.ndim == 2:
        return None
    answers, totals = predicted(logits, labels), count_classes(labels, len(names))
    pairs = [
        {"name": names[true], "answer": names[answer], "count": count, "images": int(totals[true])}
        for true, answer, count in most_confused(answers, labels, _PAIRS)
    ]
    shown = most_mistaken(answers, labels, len(names), _MATRIX)
    matrix = ConfusionMatrix(confusion_matrix(answers, labels, shown), totals[shown], [names[int(i)] for i in shown])
    right = int((answers == labels).sum())
    alt = f"Confusion matrix of {len(labels):,} test images: {right:,} are on the diagonal, where the answer is right"
    if pairs:
        alt += "; the most frequent mistake is {name} taken for {answer}, {count:,} times".format(**pairs[0])
    save_heat_map(folder.figure("confusion"), matrix)
    return {"matrix": heat_map(matrix, alt), "shown": len(shown), "of": len(names), "pairs": pairs}


def show_reliability(
    logits: np.ndarray, labels: np.ndarray, calibration: Mapping[str, Any] | None, folder: RunFolder
) -> list[dict[str, Any]]:
    """A diagram for each split, with its errors where they are known; of the test images alone, before calibration,
    where nothing was calibrated.

    Args:
        logits: of the test images, before calibration.
        calibration: as in summary.json.
    """
    calibration = calibration or {}
    curves = calibration.get("reliability")
    if not curves:
        if not np.isfinite(logits).all():
            return []
        curves = {"test": {"before": reliability_bins(probabilities(logits, labels), labels)}}
    fitted = calibration.get("method") not in (None, "none")
    several = labels.ndim == 2
    x_label = "probability of a class" if several else "confidence"
    y_label = "share of images that have it" if several else "share that is right"
    shown, charts = [], []
    for split, bins in curves.items():
        named = {f"{when} calibration": bins[when] for when in ("before", "after") if fitted and when in bins}
        named = named or {"the model": bins["before"]}
        title = _WITHIN[split] if fitted else f"{split} images"
        charts.append(reliability_chart(title, named, x_label, y_label))
        facts = calibration.get(split, {}) if fitted else {}
        alt = f"Reliability diagram of the {title}: {y_label} by {x_label}, beside the diagonal"
        shown.append({"split": title, "chart": svg(charts[-1], alt), "facts": facts})
    save_charts(folder.figure("reliability"), charts)
    return shown


def show_mistakes(logits: np.ndarray, splits: Splits, folder: RunFolder) -> list[tuple[Any, list[str]]]:
    """(picture or None where the image cannot be read any more, lines below it), the most confident mistake first."""
    test, names = splits.test, splits.class_names
    shares = probabilities(logits, test.labels)
    shown, pixels, captions = [], [], []
    for i in worst_mistakes(shares, test.labels, _MISTAKES).tolist():
        lines, caption = _in_words(shares[i], test.labels[i], names)
        image = _opened(test, i)
        alt = f"Test image {test.name(i)}: {'; '.join(lines)}"
        shown.append((None if image is None else picture(image, alt), [*lines, _last(test.name(i))]))
        if image is not None:
            image.thumbnail((256, 256))
            pixels.append(np.asarray(image))
            captions.append(caption)
    if pixels:
        save_image_grid(folder.figure("mistakes"), pixels, captions)
    return shown


def _in_words(shares: np.ndarray, label: Any, names: Sequence[str]) -> tuple[list[str], str]:
    """Lines about a mistake, and the short caption of the file of pictures."""
    if label.ndim == 0:
        true, answer = names[int(label)], names[int(shares.argmax())]
        return [f"is {true}", f"answer {answer}, {shares.max():.1%}"], f"{true}: {answer}"
    worst = int(np.abs(shares - label).argmax())
    has = ", ".join(names[int(i)] for i in np.flatnonzero(label)) or "no class"
    kind = "misses" if label[worst] else "wrongly"
    return [f"has {has}", f"{kind} {names[worst]}, {shares[worst]:.1%}"], f"{kind} {names[worst]}"


def _opened(split: Split, index: int) -> Image.Image | None:
    try:
        return open_image(split.images[index])
    except DataError:  # it was read at the start of the run, and is gone or damaged by now
        return None


def _last(name: str) -> str:
    """The name of the file, shortened; or the name as it is."""
    name = name.rsplit("/")[-1]
    return name if len(name) <= 40 else f"…{name[-39:]}"
