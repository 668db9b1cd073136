"""Batches from Grain: uint8 images whose order depends on seed, epoch and index alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from finetune.data.image_spec import ImageSpec
from finetune.data.images import open_image
from finetune.data.splits import Split
from finetune.errors import DataError

Batch = dict[str, np.ndarray]  # image: uint8 [N, H, W, 3]; label: int32 [N]; weight: float32 [N] in evaluation


class _Examples:
    """Grain's view of a split: index -> one decoded example."""

    def __init__(self, split: Split, spec: ImageSpec) -> None:
        self._split, self._spec = split, spec

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._spec.to_uint8(open_image(self._split.images[index]))
        return {"image": image, "label": self._split.labels[index]}


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Whole batches in one pass over the split.

    Raises:
        DataError: there is not even one.
    """
    if batch_size > len(split):
        raise DataError(f"batch_size: {batch_size} is more than the {len(split)} training images; choose at most that")
    return len(split) // batch_size


def training_batches(
    split: Split, spec: ImageSpec, batch_size: int, *, seed: int, workers: int = 0
) -> grain.DatasetIterator:
    """Endless whole batches, shuffled anew every epoch.

    The iterator's ``get_state()`` and ``set_state()`` carry its position through a checkpoint.

    Args:
        seed: with the epoch and the index it determines the order.
        workers: processes that decode; 0 decodes in threads.
    """
    examples: Any = _Examples(split, spec)
    batches = grain.MapDataset.source(examples).seed(seed).shuffle().batch(batch_size, drop_remainder=True).repeat()
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags, which only absl's own programs parse
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers)
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        return iter(batches.to_iter_dataset(reading).mp_prefetch(options))
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def evaluation_batches(split: Split, spec: ImageSpec, batch_size: int) -> Iterator[Batch]:
    """Every image once, in order. The last batch is filled up to size; ``weight`` is 0 where it was."""
    examples: Any = _Examples(split, spec)
    batches = grain.MapDataset.source(examples).batch(min(batch_size, len(split)))
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
