"""Images that are in two splits of a run: what was learned from would be measured again."""

from __future__ import annotations

from collections import Counter

from finetune.data.duplicates import Duplicate, duplicates_across
from finetune.data.splits import Splits


def describe_leakage(splits: Splits) -> str | None:
    """One line about images that are in two splits; None if there are none."""
    duplicates = duplicates_across(splits.named())
    if not duplicates:
        return None
    pairs = Counter((duplicate.other_split, duplicate.split) for duplicate in duplicates)
    counts = ", ".join(f"{count} of {later} also in {earlier}" for (earlier, later), count in pairs.items())
    first = " = ".join(name_pair(splits, duplicates[0]))
    return f"leakage: {counts}; the first: {first}; see: finetune check-data"


def name_pair(splits: Splits, duplicate: Duplicate) -> list[str]:
    named = splits.named()
    return [
        f"{duplicate.split}: {named[duplicate.split].name(duplicate.index)}",
        f"{duplicate.other_split}: {named[duplicate.other_split].name(duplicate.other_index)}",
    ]
