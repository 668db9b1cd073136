"""The data report: counts, sizes and modes of the images in each split, broken images, and leakage between splits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from finetune.data.duplicates import duplicates_across
from finetune.data.labeled_images import Split, count_classes
from finetune.data.leakage import name_pair
from finetune.data.splits import Splits

_EXAMPLES = 5


def report(splits: Splits) -> dict[str, Any]:
    """The report of scanned splits, as ``finetune check-data --json`` prints it."""
    duplicates = duplicates_across(splits.named())
    return {
        "classes": list(splits.class_names),
        "splits": {name: _describe(split, splits.class_names) for name, split in splits.named().items()},
        "skipped": list(splits.skipped),
        "left_out": list(splits.left_out),
        "notes": list(splits.notes),
        "leakage": {
            "exact": sum(duplicate.exact for duplicate in duplicates),
            "near": sum(not duplicate.exact for duplicate in duplicates),
            "examples": [name_pair(splits, duplicate) for duplicate in duplicates[:_EXAMPLES]],
        },
    }


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
