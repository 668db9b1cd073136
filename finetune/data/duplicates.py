"""Leakage: images of one split that are also in another, where they would be evaluated after training on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from finetune.data.labeled_images import ImageStats, Split

_MAX_BITS = 4  # of 64 in which the difference hashes of near duplicates may differ
_MAX_DIFFERENCE = 2.0  # mean absolute difference of their thumbnails, of 255
_CHUNK = 1 << 22  # pairs of hashes compared at a time
_MAX_PAIRS = 3 * 10**10  # pairs of images in two splits above which near duplicates are not searched for


@dataclass(frozen=True)
class Duplicate:
    """Image ``index`` of ``split`` is image ``other_index`` of ``other_split``.

    Attributes:
        exact: whether their pixels are equal; else they are nearly equal.
    """

    split: str
    index: int
    other_split: str
    other_index: int
    exact: bool


def duplicates_across(splits: Mapping[str, Split]) -> list[Duplicate]:
    """For each image that is also in an earlier split, its duplicate there.

    Near duplicates, such as re-encoded and resized copies, have similar difference hashes, and thumbnails that differ
    by at most two levels of 255. They are not searched for in very large splits (more than 3e10 pairs of images).

    Args:
        splits: with their stats; the training split comes first.
    """
    duplicates = []
    for (name, earlier), (other_name, later) in combinations(splits.items(), 2):
        assert earlier.stats is not None
        assert later.stats is not None
        exact = dict(_exact(earlier.stats, later.stats))
        duplicates += [Duplicate(other_name, j, name, i, True) for j, i in exact.items()]
        if len(earlier) * len(later) <= _MAX_PAIRS:
            near = {j: i for j, i in _near(earlier.stats, later.stats) if j not in exact}
            duplicates += [Duplicate(other_name, j, name, i, False) for j, i in near.items()]
    return duplicates


def group_duplicates(split: Split) -> np.ndarray:
    """int [n]: the group of each image, numbered from 0 on; exact and near duplicates share one.

    Near duplicates are told as by :func:`duplicates_across`; a group holds the duplicates of its images' duplicates,
    too. In more than 3e10 pairs, exact duplicates alone are grouped.

    Args:
        split: with its stats.
    """
    stats = split.stats
    assert stats is not None
    _, first, groups = np.unique(stats.pixel_hash, return_index=True, return_inverse=True)
    if len(first) ** 2 <= _MAX_PAIRS:
        one_of_each = stats.take(first)
        groups = _joined(len(first), _near_pairs(one_of_each, one_of_each))[groups]
    return np.asarray(groups)


def _joined(count: int, pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """int [count]: the connected components of a graph whose edges come in parts."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    components, nodes = np.arange(count), np.arange(count)
    for first, second in pairs:
        apart = components[first] != components[second]
        if apart.any():
            ends = np.concatenate([first[apart], nodes]), np.concatenate([second[apart], components])
            graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(count, count))
            components = connected_components(graph, directed=False)[1]
    return components


def _exact(earlier: ImageStats, later: ImageStats) -> Iterator[tuple[int, int]]:
    """(index in later, index in earlier) of images with equal pixels."""
    index = {value: i for i, value in enumerate(earlier.pixel_hash.tolist()) if not earlier.problem[i]}
    for j, value in enumerate(later.pixel_hash.tolist()):
        if value in index and not later.problem[j]:
            yield j, index[value]


def _near(earlier: ImageStats, later: ImageStats) -> Iterator[tuple[int, int]]:
    """(index in later, index in earlier) of images with similar difference hashes and similar thumbnails."""
    for j, i in _near_pairs(earlier, later):
        yield from zip(j.tolist(), i.tolist(), strict=True)


def _near_pairs(earlier: ImageStats, later: ImageStats) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same as arrays, a part at a time."""
    rows_per_chunk = max(1, _CHUNK // max(1, len(earlier.difference_hash)))
    for start in range(0, len(later.difference_hash), rows_per_chunk):
        chunk = later.difference_hash[start : start + rows_per_chunk]
        different_bits = np.bitwise_count(chunk[:, None] ^ earlier.difference_hash[None, :])
        rows, columns = np.nonzero(different_bits <= _MAX_BITS)
        for first in range(0, len(rows), _CHUNK // 64):
            j, i = rows[first : first + _CHUNK // 64] + start, columns[first : first + _CHUNK // 64]
            difference = np.abs(later.thumbnail[j].astype(np.int16) - earlier.thumbnail[i]).mean((1, 2, 3))
            near = (earlier.problem[i] == "") & (later.problem[j] == "") & (difference <= _MAX_DIFFERENCE)
            yield j[near], i[near]
