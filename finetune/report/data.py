"""What a check of the images found, in figures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from finetune.data.duplicates import Duplicate, duplicates_across
from finetune.data.labeled_images import Split, count_classes
from finetune.data.splits import Splits

_EXAMPLES = 5


def report(splits: Splits) -> dict[str, Any]:
    """As JSON has it: images, classes, sizes and modes of each split; broken images; pictures in two splits."""
    found = duplicates_across(splits.named())
    return {
        "classes": list(splits.class_names),
        "splits": {name: _describe(split, splits.class_names) for name, split in splits.named().items()},
        "skipped": list(splits.skipped),
        "leakage": {
            "exact": sum(duplicate.exact for duplicate in found),
            "near": sum(not duplicate.exact for duplicate in found),
            "examples": [_names(splits, duplicate) for duplicate in found[:_EXAMPLES]],
        },
    }


def leakage(splits: Splits) -> str | None:
    """One line about pictures that are in two splits; None where there are none."""
    found = duplicates_across(splits.named())
    if not found:
        return None
    pairs = Counter((duplicate.other_split, duplicate.split) for duplicate in found)
    counts = ", ".join(f"{count} of {b} also in {a}" for (a, b), count in pairs.items())
    return f"leakage: {counts}; the first: {' = '.join(_names(splits, found[0]))}; see: finetune check"


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
