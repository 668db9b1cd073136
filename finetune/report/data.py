"""The data report: counts, sizes and modes of the images in each split, broken images, and leakage between splits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from finetune.data.duplicates import Duplicate, duplicates_across
from finetune.data.labeled_images import Split, count_classes
from finetune.data.splits import Splits

_EXAMPLES = 5


def report(splits: Splits) -> dict[str, Any]:
    """The report of scanned splits, as ``finetune check-data --json`` prints it."""
    duplicates = duplicates_across(splits.named())
    return {
        "classes": list(splits.class_names),
        "splits": {name: _describe(split, splits.class_names) for name, split in splits.named().items()},
        "skipped": list(splits.skipped),
        "leakage": {
            "exact": sum(duplicate.exact for duplicate in duplicates),
            "near": sum(not duplicate.exact for duplicate in duplicates),
            "examples": [_names(splits, duplicate) for duplicate in duplicates[:_EXAMPLES]],
        },
    }


def leakage(splits: Splits) -> str | None:
    """One line about images that are in two splits; None if there are none."""
    duplicates = duplicates_across(splits.named())
    if not duplicates:
        return None
    pairs = Counter((duplicate.other_split, duplicate.split) for duplicate in duplicates)
    counts = ", ".join(f"{count} of {later} also in {earlier}" for (earlier, later), count in pairs.items())
    first = " = ".join(_names(splits, duplicates[0]))
    return f"leakage: {counts}; the first: {first}; see: finetune check-data"


def _describe(split: Split, class_names: tuple[str, ...]) -> dict[str, Any]:
    counts = count_classes(split.labels, len(class_names))
    stats = split.stats
    assert stats is not None
    sizes = Counter(zip(stats.width.tolist(), stats.height.tolist(), strict=True))
    return {
        "images": len(split),
        "per_class": dict(zip(class_names, counts.tolist(), strict=True)),
        "imbalance": round(float(counts.max() / max(1, counts.min())), 2),
        "sizes": {
            "smallest": min(sizes, key=lambda size: size[0] * size[1]),
            "largest": max(sizes, key=lambda size: size[0] * size[1]),
            "median": [int(np.median(stats.width)), int(np.median(stats.height))],
            "different": len(sizes),
        },
        "modes": dict(Counter(stats.mode.tolist()).most_common()),
    }


def _names(splits: Splits, duplicate: Duplicate) -> list[str]:
    named = splits.named()
    return [
        f"{duplicate.split}: {named[duplicate.split].name(duplicate.index)}",
        f"{duplicate.other_split}: {named[duplicate.other_split].name(duplicate.other_index)}",
    ]
