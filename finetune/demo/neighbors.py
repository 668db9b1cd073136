"""The training images that are most like an image, by the features that the classifier's head reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from finetune.data.image_record import ImageRecord
from finetune.data.labeled_images import Split
from finetune.data.loader import evaluation_batches
from finetune.data.splits import load_splits
from finetune.errors import CheckpointError, DataError
from finetune.evaluation.steps import make_feature_step
from finetune.foreign_errors import foreign_errors_translated
from finetune.images.open import ImageLike, open_image
from finetune.inference.predictor import Predictor
from finetune.models.heads import unit_length
from finetune.recipe import load_recipe
from finetune.remote import local_folder
from finetune.tracking import Track, untracked

MOST = 2000  # training images that are compared with
_BATCH = 32


@dataclass(frozen=True)
class Neighbor:
    """A training image.

    Attributes:
        image: as in :class:`Split`.
        labels: its classes; one, or any number where images may be of several.
        similarity: the cosine of its features with those of the image that was asked about.
    """

    image: ImageLike
    labels: tuple[str, ...]
    similarity: float


class TrainingImages:
    """Images with their features, for a model to find the most similar ones."""

    def __init__(
        self, predictor: Predictor, split: Split, class_names: tuple[str, ...], track: Track = untracked
    ) -> None:
        """
        Args:
            split: training images; of more than ``MOST``, so many are taken, evenly spread.
            class_names: that its labels are indices of.

        Raises:
            DataError: an image cannot be used.
        """
        every = np.unique(np.linspace(0, len(split) - 1, min(len(split), MOST)).astype(np.int64))
        self._predictor, self._split, self._names = predictor, split.take(every), class_names
        self._step = make_feature_step(predictor.model, predictor.image_spec)
        placement = predictor.placement
        size = placement.round_up(min(_BATCH, len(self._split)))
        batches = evaluation_batches(self._split, predictor.image_spec, size)
        rows = [
            self._features(placement.put_batch(batch["image"]))
            for batch in track(batches, "training images", -(-len(self._split) // size))
        ]
        self._bank = np.concatenate(rows)[: len(self._split)]

    def __len__(self) -> int:
        return len(self._split)

    def nearest(self, image: ImageLike, count: int) -> list[Neighbor]:
        """So many of them, or all where there are fewer, the most similar first.

        Raises:
            DataError: the image cannot be used.
        """
        pixels = self._predictor.image_spec.to_uint8(open_image(image))
        similarities = self._bank @ self._features(self._predictor.placement.put_whole(pixels[None]))[0]
        order = np.argsort(-similarities, kind="stable")[:count]
        return [Neighbor(self._split.images[int(i)], self._labels(int(i)), float(similarities[i])) for i in order]

    def _features(self, images: jax.Array) -> np.ndarray:
        """float32 [N, num_features], of length one."""
        return np.asarray(unit_length(self._step(self._predictor.variables, images)))

    def _labels(self, index: int) -> tuple[str, ...]:
        label = self._split.labels[index]
        return tuple(self._names[int(i)] for i in (np.flatnonzero(label) if label.ndim else [label]))


def read_training_images(directory: str | Path, predictor: Predictor, track: Track = untracked) -> TrainingImages:
    """Those of a run's folder, from where its recipe says that they are.

    Args:
        directory: as in :func:`finetune.restore`.
        predictor: from there.

    Raises:
        FinetuneError: they are not there, are no longer those of the run, or cannot be compared.
    """
    if predictor.model.headless:
        raise CheckpointError("the model is a complete network, without features in front of a head")
    folder = local_folder(directory, skip=("state",))
    if not (folder / "recipe.yaml").is_file():
        raise CheckpointError("a model alone does not know them; give the folder of its run")
    with foreign_errors_translated():
        recipe = load_recipe(folder / "recipe.yaml")
        splits = load_splits(recipe.data, recipe.seed, None, track)
        before = ImageRecord.load(folder)
        if before is not None and (changes := ImageRecord.of(splits).changes_since(before)):
            raise DataError(f"they have changed: {changes}")
        return TrainingImages(predictor, splits.train, splits.class_names, track)
