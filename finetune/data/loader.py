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
    shard: tuple[int, int] = (0, 1),
) -> ParallelBatches:
    """An endless iterator over full batches, shuffled differently in every epoch.

    Its ``get_state()`` and ``set_state()`` save and restore its position, for any number of workers.

    Args:
        transform: (image, generator) -> uint8 [H, W, C]; the generator is a function of seed, epoch and index.
        batch_size: over all shards.
        num_workers: decoding processes; 0 decodes in threads.
        balanced: samples every class equally often; the number of images in an epoch stays the same.
        shard: (index, count), which part of every batch this process takes. The union of the parts is the same batch
            for every count.

    Raises:
        DataError: the batch size exceeds the number of images or is not a multiple of the number of shards, or
            ``balanced`` with many labels per image.
        RecipeError: there are more workers than processors.
    """
    shard_index, shard_count = shard
    if batch_size % shard_count:
        raise DataError(f"batch_size: {batch_size} does not divide among {shard_count} processes; choose a multiple")
    if num_workers:
        split = for_processes(split, cache_folder() / "in_memory")
    labels = split.labels
    indices = _balanced_indices(labels, seed) if balanced else _shuffled_indices(labels, batch_size, seed)
    if shard_count > 1:
        indices = indices[shard_index::shard_count]
    examples = indices.map(_Examples(split).__getitem__).seed(seed).random_map(_Transformed(transform))
    return ParallelBatches(partial(_stack, examples), sys.maxsize, batch_size // shard_count, num_workers)


def kept_batches(
    store: FeatureStore, labels: np.ndarray, batch_size: int, *, seed: int, balanced: bool = False
) -> ParallelBatches:
    """The batches of :func:`training_batches`, in the same order, with ``kept`` from a store instead of ``image``.

    Where the store has several views of each image, all first views first, each batch draws among them.
    """
    indices = _balanced_indices(labels, seed) if balanced else _shuffled_indices(labels, batch_size, seed)
    views = len(store) // len(labels)
    if views > 1:
        count = len(labels)
        indices = indices.seed(seed).random_map(lambda index, rng: index + count * int(rng.integers(views)))

    def gather(start: int, stop: int) -> dict[str, Any]:
        rows = np.array([indices[i] for i in range(start, stop)])
        return {"kept": store.take(rows), "label": labels[rows % len(labels)]}

    return ParallelBatches(gather, sys.maxsize, batch_size)


def evaluation_batches(split: Split, spec: ImageSpec, batch_size: int, start: int = 0) -> Iterator[Batch]:
    """Every image once, in order, from the one at ``start``. The last batch is padded to full size; ``weight`` is 0 for
    its padding."""
    size = min(batch_size, len(split))
    examples = grain.MapDataset.source(range(start, len(split))).map(_Examples(split).__getitem__)
    examples = examples.map(_Transformed(lambda image: spec.to_uint8(open_image(image))))
    return _padded(examples, size)


def view_batches(
    split: Split, transform: Transform, batch_size: int, views: int, *, seed: int, start: int = 0
) -> Iterator[Batch]:
    """``views`` augmented views of every image, all first views first; padded as in :func:`evaluation_batches`."""
    size = min(batch_size, len(split))
    rows = grain.MapDataset.source(range(views * len(split))).seed(seed)
    rows = rows.map(lambda row: _Examples(split)[row % len(split)]).random_map(_Transformed(transform))
    return _padded(rows[start:], size)


def kept_evaluation_batches(store: FeatureStore, labels: np.ndarray, batch_size: int) -> Iterator[dict[str, Any]]:
    """The batches of :func:`evaluation_batches` with ``kept`` from a store instead of ``image``."""
    size = min(batch_size, len(labels))
    for start in range(0, len(labels), size):
        rows = np.arange(start, start + size)
        inside = rows < len(labels)
        rows = np.minimum(rows, len(labels) - 1)  # padding, which weighs nothing
        yield {"kept": store.take(rows), "label": labels[rows], "weight": inside.astype(np.float32)}


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


def _stack(examples: grain.MapDataset, start: int, stop: int) -> Batch:
    rows = [examples[i] for i in range(start, stop)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _padded(examples: grain.MapDataset, size: int) -> Iterator[Batch]:
    with closing(ParallelBatches(partial(_stack, examples), len(examples), size)) as batches:
        for batch in batches:
            yield _pad(batch, size)


def _pad(batch: Batch, size: int) -> Batch:
    """The batch padded with zeros to ``size`` along the first axis, and the ``weight`` of each row: 1 or 0."""
    count = len(batch["image"])
    padded = {
        name: np.concatenate([array, np.zeros((size - count, *array.shape[1:]), array.dtype)])
        for name, array in batch.items()
    }
    return {**padded, "weight": (np.arange(size) < count).astype(np.float32)}
