"""Batches from Grain: uint8 images whose order depends on seed, epoch and index alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from finetune.data.labeled_images import Split
from finetune.errors import DataError
from finetune.images.open import ImageLike, open_image
from finetune.images.spec import ImageSpec

# image: uint8 [N, H, W, C]; label: int32 [N], or float32 [N, C] with many labels; weight: float32 [N] in evaluation
Batch = dict[str, np.ndarray]
Prepare = Callable[[ImageLike, np.random.Generator], np.ndarray]


class _Examples:
    """Grain's view of a split: index -> image as it is stored, label, and where it is."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._split.images[index], "label": self._split.labels[index], "name": self._split.name(index)}


class _Prepared:
    """An example, its image made ready; called with Grain's generator in training and without one in evaluation."""

    def __init__(self, prepare: Callable[..., np.ndarray]) -> None:
        self._prepare = prepare

    def __call__(self, example: dict[str, Any], *rng: np.random.Generator) -> dict[str, Any]:
        try:
            return {"image": self._prepare(example["image"], *rng), "label": example["label"]}
        except DataError as error:
            if isinstance(example["image"], bytes):  # which know no name of their own
                raise DataError(f"{example['name']}: {error}") from None
            raise


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Whole batches in one pass over the split.

    Raises:
        DataError: there is not even one.
    """
    if batch_size > len(split):
        raise DataError(f"batch_size: {batch_size} is more than the {len(split)} training images; choose at most that")
    return len(split) // batch_size


def training_batches(
    split: Split,
    prepare: Prepare,
    batch_size: int,
    *,
    seed: int,
    num_workers: int = 0,
    balanced: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> grain.DatasetIterator:
    """Endless whole batches, shuffled anew every epoch.

    The iterator's ``get_state()`` and ``set_state()`` carry its position through a checkpoint.

    Args:
        prepare: (image, generator) -> uint8 [H, W, C]; the generator is a function of seed, epoch and index.
        batch_size: over all shards.
        num_workers: processes that decode; 0 decodes in threads.
        balanced: every class equally often; an epoch is as many images as ever.
        shard: (number, count): which part of every batch is for this process. All of them together give the same
            batches, whatever their count.

    Raises:
        DataError: a batch that cannot be shared out, or balance among images with many labels.
    """
    number, count = shard
    if batch_size % count:
        raise DataError(f"batch_size: {batch_size} cannot be shared out to {count} processes; choose a multiple")
    examples: Any = _Examples(split)
    if balanced:
        order = _balanced(split, seed)
    else:
        order = grain.MapDataset.source(range(len(split))).seed(seed).shuffle()
        order = order[: steps_per_epoch(split, batch_size) * batch_size]
    if count > 1:
        order = order[number::count]
    prepared = order.map(examples.__getitem__).seed(seed).random_map(_Prepared(prepare))
    batches = prepared.batch(batch_size // count, drop_remainder=True)
    if not balanced:
        batches = batches.repeat()
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags, which only absl's own programs parse
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        return iter(batches.to_iter_dataset(reading).mp_prefetch(options))
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def _balanced(split: Split, seed: int) -> grain.MapDataset:
    """Indices without end, one class after the other; each class shuffled anew whenever it is through."""
    if split.multi_label:
        raise DataError("data.sampling: balanced needs images with one label each; these have many")
    classes = [np.flatnonzero(split.labels == label) for label in np.unique(split.labels)]
    parts = [grain.MapDataset.source(c.tolist()).seed(seed + i).shuffle().repeat() for i, c in enumerate(classes)]
    return grain.MapDataset.mix(parts)


def evaluation_batches(split: Split, spec: ImageSpec, batch_size: int) -> Iterator[Batch]:
    """Every image once, in order. The last batch is filled up to size; ``weight`` is 0 where it was."""
    examples: Any = _Examples(split)
    prepared = grain.MapDataset.source(examples).map(_Prepared(lambda image: spec.to_uint8(open_image(image))))
    batches = prepared.batch(min(batch_size, len(split)))
    for batch in batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)):
        yield pad(batch, min(batch_size, len(split)))


def pad(batch: Batch, size: int) -> Batch:
    """The batch, its first axis brought to ``size`` with zeros, and the ``weight`` that tells which rows are real."""
    count = len(batch["image"])
    filled = {
        name: np.concatenate([array, np.zeros((size - count, *array.shape[1:]), array.dtype)])
        for name, array in batch.items()
    }
    return {**filled, "weight": (np.arange(size) < count).astype(np.float32)}
