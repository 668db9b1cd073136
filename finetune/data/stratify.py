"""Stratified splitting: a share of the images, with the same share of each class."""

from __future__ import annotations

import numpy as np

from finetune.data.labeled_images import Split
from finetune.errors import DataError


def stratified_split(split: Split, fraction: float, seed: int, option: str) -> tuple[Split, Split]:
    """(remainder, part): the part gets ``fraction`` of the images of each class. Both keep the order of the images.

    Images with one label each are split by scikit-learn, images with many labels by iterative stratification.

    Args:
        option: the recipe's option that asks for the part, for messages.

    Raises:
        DataError: too few images for each side to get some of every class.
    """
    if split.multi_label:
        in_part = _iterative_stratification(split.labels.astype(bool), fraction, seed)
        return split.take(np.flatnonzero(~in_part)), split.take(np.flatnonzero(in_part))

    from sklearn.model_selection import train_test_split

    try:
        remainder, part = train_test_split(
            np.arange(len(split)), test_size=fraction, random_state=seed, stratify=split.labels
        )
    except ValueError as error:
        raise DataError(
            f"{option}: cannot take {fraction:g} of {len(split)} images in {len(np.unique(split.labels))} classes: "
            f"{error}"
        ) from None
    return split.take(np.sort(remainder)), split.take(np.sort(part))


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
