"""Labels without images, for measurements that need a run's shapes and none of its data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune.data.labeled_images import Split
from finetune.data.splits import Splits


def placeholder_splits(count: int, class_names: Sequence[str], *, multi_label: bool = False) -> Splits:
    """Splits of ``count`` images each, with labels of every class in turn and black images of one pixel."""
    classes = (np.arange(count) % len(class_names)).astype(np.int32)
    labels = np.eye(len(class_names), dtype=np.float32)[classes] if multi_label else classes
    split = Split(np.zeros((count, 1, 1), np.uint8), labels)
    return Splits(split, split, split, tuple(class_names))
