"""The same picture in two splits: what was learned from would be measured again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from finetune.data.labeled_images import Split

_BITS = 4  # of 64 in which the outlines of near duplicates may differ
_LEVELS = 2.0  # mean absolute difference of their thumbnails, of 255
_ROWS = 1 << 22  # comparisons at a time
MOST = 3 * 10**10  # comparisons that are worth their time


@dataclass(frozen=True)
class Duplicate:
    """Image ``index`` of one split is image ``other_index`` of another: with the very same pixels, or nearly."""

    split: str
    index: int
    other_split: str
    other_index: int
    exact: bool


def duplicates_across(splits: Mapping[str, Split]) -> list[Duplicate]:
    """Each image of a split with its double in an earlier split, if it has one.

    Near duplicates are images of the same outline (difference hash) whose thumbnails are the same within two levels,
    as re-encoded and resized copies are; they are not searched for among more than ``MOST`` pairs.

    Args:
        splits: with facts, the one that learns first.
    """
    found = []
    for (a, first), (b, second) in combinations(splits.items(), 2):
        exact = dict(_exact(first, second))
        found += [Duplicate(b, j, a, i, True) for j, i in exact.items()]
        if len(first) * len(second) <= MOST:
            near = {j: i for j, i in _near(first, second) if j not in exact}
            found += [Duplicate(b, j, a, i, False) for j, i in near.items()]
    return found


def _exact(first: Split, second: Split) -> Iterator[tuple[int, int]]:
    """(index in second, index in first)."""
    assert first.stats is not None
    assert second.stats is not None
    known = {value: i for i, value in enumerate(first.stats.pixels.tolist()) if not first.stats.problem[i]}
    for j, value in enumerate(second.stats.pixels.tolist()):
        if value in known and not second.stats.problem[j]:
            yield j, known[value]


def _near(first: Split, second: Split) -> Iterator[tuple[int, int]]:
    """(index in second, index in first) of candidates by outline that their thumbnails confirm."""
    a, b = first.stats, second.stats
    assert a is not None
    assert b is not None
    step = max(1, _ROWS // max(1, len(a.outline)))
    for start in range(0, len(b.outline), step):
        apart = np.bitwise_count(b.outline[start : start + step, None] ^ a.outline[None, :])
        rows, columns = np.nonzero(apart <= _BITS)
        for from_ in range(0, len(rows), _ROWS // 64):
            j, i = rows[from_ : from_ + _ROWS // 64] + start, columns[from_ : from_ + _ROWS // 64]
            difference = np.abs(b.thumbnail[j].astype(np.int16) - a.thumbnail[i]).mean((1, 2, 3))
            usable = (a.problem[i] == "") & (b.problem[j] == "") & (difference <= _LEVELS)
            yield from zip(j[usable].tolist(), i[usable].tolist(), strict=True)
