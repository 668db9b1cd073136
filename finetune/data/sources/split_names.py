"""The names that sources give to their splits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from finetune.errors import DataError

_T = TypeVar("_T")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}


def canonical_split(name: str) -> str | None:
    """``train``, ``validation`` or ``test`` for any of its names, in any case; None for another name."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def by_canonical_split(named: Iterable[tuple[str, _T]], where: str) -> dict[str, _T]:
    """(name, item) pairs as canonical split -> item. A single item is training data, whatever its name.

    Raises:
        DataError: there is no training split, or two names mean the same split.
    """
    items = list(named)
    if len(items) == 1:
        return {"train": items[0][1]}
    splits: dict[str, _T] = {}
    for name, item in items:
        split = canonical_split(name)
        if split in splits:
            raise DataError(f"{where}: has two {split} splits: {', '.join(name for name, _ in items)}; remove one")
        if split:
            splits[split] = item
    if "train" not in splits:
        names = ", ".join(name for name, _ in items)
        raise DataError(f"{where}: has no training split; its splits: {names or 'none'}; one must be called train")
    return splits
