"""Stratified splitting: a share of the images, with the same share of each class."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import numpy as np

from finetune.data.labeled_images import Split
from finetune.errors import DataError


def stratified_split(
    split: Split, fraction: float, seed: int, option: str, trains_on: Literal["remainder", "part"] = "remainder"
) -> tuple[Split, Split]:
    """(remainder, part): the part gets ``fraction`` of the images of each class. Both keep the order of the images.

    Images with one label each are split by scikit-learn where each side can have some of every class, else by the
    largest remainders; the only image of a class is on the side for training. Images with many labels are split by
    iterative stratification.

    Args:
        option: the recipe's option that asks for the part, for messages.
        trains_on: ``remainder`` or ``part``, the side that is for training.

    Raises:
        DataError: too few images for each side to get any.
    """
    if split.multi_label:
        in_part = _iterative_stratification(split.labels.astype(bool), fraction, seed)
        return split.take(np.flatnonzero(~in_part)), split.take(np.flatnonzero(in_part))

    count, size = len(split), math.ceil(fraction * len(split) - 1e-9)
    classes, counts = np.unique(split.labels, return_counts=True)
    empty = DataError(
        f"{option}: cannot take {fraction:g} of {count} images in {len(classes)} classes: one side would be empty"
    )
    if not 0 < size < count:
        raise empty
    if counts.min() > 1 and min(size, count - size) >= len(classes):
        from sklearn.model_selection import train_test_split

        remainder, part = train_test_split(
            np.arange(count), test_size=fraction, random_state=seed, stratify=split.labels
        )
        return split.take(np.sort(remainder)), split.take(np.sort(part))
    in_part = _largest_remainders(split.labels, size, seed, single_in_part=trains_on == "part")
    if not in_part.any() or in_part.all():
        raise empty
    return split.take(np.flatnonzero(~in_part)), split.take(np.flatnonzero(in_part))


def grouped_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """int [n]: the fold that holds each image out, from 0 on; the images of a group share one.

    Groups are stratified by the label of their first image. Images are in no fold, -1, where no image of their class
    would be left outside of it, and so are the others of their group.

    Args:
        labels: int [n].
        groups: int [n], numbered from 0 on.
        folds: how many; fewer where no class has as many groups.
    """
    from sklearn.model_selection import StratifiedKFold

    first = np.unique(groups, return_index=True)[1]
    folds = min(folds, int(np.bincount(labels[first]).max()))
    of_group = np.full(len(first), -1)
    if folds > 1:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of classes with fewer images than folds
            splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
            for fold, (_, part) in enumerate(splitter.split(first, labels[first])):
                of_group[part] = fold
    for fold in range(folds):
        held_out = of_group[groups] == fold
        alone = held_out & ~np.isin(labels, labels[~held_out])
        of_group[groups[alone]] = -1
    return np.asarray(of_group[groups])


def _largest_remainders(labels: np.ndarray, size: int, seed: int, *, single_in_part: bool) -> np.ndarray:
    """bool [n], which images are in a part of ``size`` images, as near to each class's share as whole images allow.

    Each class that has more than one image keeps at least one outside of the part.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * (size / len(labels))
    most = np.where(counts > 1, counts - 1, int(single_in_part))
    quotas = np.minimum(np.floor(shares).astype(int), most)
    if single_in_part:
        quotas = np.maximum(quotas, most * (counts == 1))
    tie_break = rng.random(len(classes))
    while quotas.sum() < size and (quotas < most).any():
        lacking = np.where(quotas < most, shares - quotas, -np.inf)
        quotas[np.lexsort((tie_break, lacking))[-1]] += 1
    in_part = np.zeros(len(labels), bool)
    for value, quota in zip(classes, quotas, strict=True):
        in_part[rng.permutation(np.flatnonzero(labels == value))[:quota]] = True
    return in_part


def _iterative_stratification(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Assigns the images of the rarest class first, each to the side that lacks most of it (Sechidis et al. 2011).

    Args:
        labels: bool [n, C].

    Returns:
        bool [n], which images are in the part.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shares = np.array([1 - fraction, fraction])
    class_quota = shares[:, None] * labels.sum(0)  # [2, C], images of each class that a side still lacks
    quota = shares * len(labels)  # [2], images that a side still lacks
    side = np.full(len(labels), -1)
    while (unassigned := order[side[order] < 0]).size:
        counts = labels[unassigned].sum(0)
        rarest = int(np.where(counts > 0, counts, np.iinfo(int).max).argmin())
        labels_left = counts[rarest] > 0  # at the end come the images without any label
        group = unassigned[labels[unassigned, rarest]] if labels_left else unassigned
        for image in group:
            lacking = class_quota[:, rarest] if labels_left else quota
            best = int(np.lexsort((quota, lacking))[-1])
            side[image] = best
            class_quota[best] -= labels[image]
            quota[best] -= 1
    return side == 1
