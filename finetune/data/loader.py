"""Batches of uint8 images, by Grain; their order is a function of seed, epoch and index only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import closing
from functools import partial
from typing import Any

import grain
import numpy as np

from finetune.data.feature_store import FeatureStore
from finetune.data.labeled_images import Split
from finetune.data.mapped_images import for_processes
from finetune.data.parallel_batches import ParallelBatches
from finetune.errors import DataError
from finetune.files import cache_folder
from finetune.images.open import ImageLike, open_image
from finetune.images.spec import ImageSpec

# image: uint8 [N, H, W, C]; label: int32 [N], or float32 [N, C] for many labels; weight, in evaluation: float32 [N]
Batch = dict[str, np.ndarray]
Transform = Callable[[ImageLike, np.random.Generator], np.ndarray]


def steps_per_epoch(split: Sized, batch_size: int) -> int:
    """The number of full batches in one pass over the split, or over its labels.

    Raises:
        DataError: the batch size exceeds the number of images.
    """
    if batch_size > len(split):
        raise DataError(f"batch_size: {batch_size} is more than the {len(split)} training images; choose at most that")
    return len(split) // batch_size


def training_batches(
    split: Split,
    transform: Transform,
    batch_size: int,
    *,
    seed: int,
    num_workers: int = 0,
    balanced: bool = False,
    share: np.ndarray | None = None,
) -> ParallelBatches:
    """An endless iterator over full batches, shuffled differently in every epoch.

    Its ``get_state()`` and ``set_state()`` save and restore its position, for any number of workers.

    Args:
        transform: (image, generator) -> uint8 [H, W, C]; the generator is a function of seed, epoch and index.
        batch_size: over all processes.
        num_workers: decoding processes; 0 decodes in threads.
        balanced: samples every class equally often; the number of images in an epoch stays the same.
        share: the rows of every batch that this process makes, ascending; by default all. They are the same whoever
            makes them.

    Raises:
        DataError: the batch size exceeds the number of images, or ``balanced`` with many labels per image.
        RecipeError: there are more workers than processors.
    """
    if num_workers:
        split = for_processes(split, cache_folder() / "in_memory")
    labels = split.labels
    indices = _balanced_indices(labels, seed) if balanced else _shuffled_indices(labels, batch_size, seed)
    examples = indices.map(_Examples(split).__getitem__).seed(seed).random_map(_Transformed(transform))
    rows = _Rows(batch_size, share)
    return ParallelBatches(partial(_stack, examples, rows), sys.maxsize, rows.count, num_workers)


def kept_batches(
    store: FeatureStore,
    labels: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    balanced: bool = False,
    share: np.ndarray | None = None,
) -> ParallelBatches:
    """The batches of :func:`training_batches`, in the same order, with ``kept`` from a store instead of ``image``.

    Where the store has several views of each image, all first views first, each batch draws among them.
    """
    indices = _balanced_indices(labels, seed) if balanced else _shuffled_indices(labels, batch_size, seed)
    views = len(store) // len(labels)
    if views > 1:
        count = len(labels)
        indices = indices.seed(seed).random_map(lambda index, rng: index + count * int(rng.integers(views)))

    of_batches = _Rows(batch_size, share)

    def gather(start: int, stop: int) -> dict[str, Any]:
        rows = np.array([indices[of_batches[i]] for i in range(start, stop)])
        return {"kept": store.take(rows), "label": labels[rows % len(labels)]}

    return ParallelBatches(gather, sys.maxsize, of_batches.count)


def evaluation_batches(
    split: Split, spec: ImageSpec, batch_size: int, start: int = 0, share: np.ndarray | None = None
) -> Iterator[Batch]:
    """Every image once, in order, from the one at ``start``. The last batch is padded to full size; ``weight`` is 0 for
    its padding.

    Args:
        share: the rows of every batch that this process makes, ascending; by default all.
    """
    examples = grain.MapDataset.source(range(start, len(split))).map(_Examples(split).__getitem__)
    examples = examples.map(_Transformed(lambda image: spec.to_uint8(open_image(image))))
    return _padded(examples, _Rows(batch_size, share))


def view_batches(
    split: Split,
    transform: Transform,
    batch_size: int,
    views: int,
    *,
    seed: int,
    start: int = 0,
    share: np.ndarray | None = None,
) -> Iterator[Batch]:
    """``views`` augmented views of every image, all first views first; padded as in :func:`evaluation_batches`."""
    rows = grain.MapDataset.source(range(views * len(split))).seed(seed)
    rows = rows.map(lambda row: _Examples(split)[row % len(split)]).random_map(_Transformed(transform))
    return _padded(rows[start:], _Rows(batch_size, share))


def kept_evaluation_batches(
    store: FeatureStore, labels: np.ndarray, batch_size: int, share: np.ndarray | None = None
) -> Iterator[dict[str, Any]]:
    """The batches of :func:`evaluation_batches` with ``kept`` from a store instead of ``image``."""
    of_batch = np.arange(batch_size) if share is None else share
    for start in range(0, len(labels), batch_size):
        rows = start + of_batch
        inside = rows < len(labels)
        rows = np.minimum(rows, len(labels) - 1)  # padding, which weighs nothing
        yield {"kept": store.take(rows), "label": labels[rows], "weight": inside.astype(np.float32)}


class _Rows:
    """What this process makes of batches: its position -> the position among all examples.

    Attributes:
        count: rows of a batch that it makes.
    """

    def __init__(self, batch_size: int, share: np.ndarray | None) -> None:
        self.batch_size = batch_size
        self._share = None if share is None else share.tolist()
        self.count = batch_size if share is None else len(share)

    def __getitem__(self, position: int) -> int:
        if self._share is None:
            return position
        batch, row = divmod(position, self.count)
        return int(batch * self.batch_size + self._share[row])

    def within(self, first: int, total: int) -> np.ndarray:
        """Which of the rows of the batch that begins at ``first`` are not padding, behind ``total`` examples."""
        rows = np.arange(self.batch_size) if self._share is None else np.array(self._share)
        return np.asarray(first + rows < total)


class _Examples:
    """A split as a Grain source: index -> stored image, label, and the image's name."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._split.images[index], "label": self._split.labels[index], "name": self._split.name(index)}


class _Transformed:
    """Transforms an example's image; Grain passes a generator in training and none in evaluation."""

    def __init__(self, transform: Callable[..., np.ndarray]) -> None:
        self._transform = transform

    def __call__(self, example: dict[str, Any], *rng: np.random.Generator) -> dict[str, Any]:
        try:
            return {"image": self._transform(example["image"], *rng), "label": example["label"]}
        except DataError as error:
            if isinstance(example["image"], bytes):  # the error cannot name these
                raise DataError(f"{example['name']}: {error}") from None
            raise


def _shuffled_indices(labels: np.ndarray, batch_size: int, seed: int) -> grain.MapDataset:
    """The indices of one epoch's full batches."""
    indices = grain.MapDataset.source(range(len(labels))).seed(seed).shuffle()
    return indices[: steps_per_epoch(labels, batch_size) * batch_size]


def _balanced_indices(labels: np.ndarray, seed: int) -> grain.MapDataset:
    """Endless indices, one of each class in turn; a class is shuffled again after each pass over it."""
    if labels.ndim == 2:
        raise DataError("data.sampling: balanced needs images with one label each; these have many")
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    shuffled = [
        grain.MapDataset.source(indices.tolist()).seed(seed + i).shuffle().repeat() for i, indices in enumerate(classes)
    ]
    return grain.MapDataset.mix(shuffled)


def _stack(examples: grain.MapDataset, rows: _Rows, start: int, stop: int) -> Batch:
    made = [examples[rows[i]] for i in range(start, stop)]
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


def _padded(examples: grain.MapDataset, rows: _Rows) -> Iterator[Batch]:
    total, firsts = len(examples), range(0, len(examples), rows.batch_size)
    inside = [rows.within(first, total) for first in firsts]
    # a process that has nothing of the last batch makes one row of it, as padding; Grain begins again behind the end
    length = sum(max(1, int(mask.sum())) for mask in inside)
    with closing(ParallelBatches(partial(_stack, examples, rows), length, rows.count)) as batches:
        for batch, mask in zip(batches, inside, strict=True):
            yield {**_pad(batch, rows.count), "weight": mask.astype(np.float32)}


def _pad(batch: Batch, size: int) -> Batch:
    """The batch padded with zeros to ``size`` along the first axis."""
    missing = size - len(batch["image"])
    return {
        name: np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
        for name, array in batch.items()
    }
