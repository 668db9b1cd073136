"""Measuring a saved model again, on the images of its run or on others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetune.data.classes import relabel
from finetune.data.image_record import ImageRecord
from finetune.data.known_classes import KnownImages, read_known_images
from finetune.data.labeled_images import Split
from finetune.data.splits import Splits, load_splits
from finetune.errors import CheckpointError, DataError
from finetune.evaluation.calibration import describe_calibration
from finetune.evaluation.metrics import evaluate
from finetune.evaluation.steps import make_eval_step
from finetune.evaluation.verdict import describe_result
from finetune.inference.predictor import Predictor, restore
from finetune.recipe import DataConfig, Recipe, load_recipe, read_data_config
from finetune.remote import local_folder
from finetune.tracking import Track, untracked

SplitName = Literal["train", "validation", "test"]


def evaluate_run(
    directory: str | Path,
    source: str | DataConfig | None = None,
    *,
    split: SplitName | None = None,
    verify: bool = False,
    allow_local_code: bool = False,
    track: Track | None = None,
) -> dict[str, Any]:
    """Measures a run's model.

    Args:
        directory: the run's folder, or the URL of a copy of it.
        source: another data source, whose classes are matched to the model's by name; all of its images are measured.
        split: one split of the source, or of the run's data, whose test split is measured by default.
        verify: read every image again, whatever is cached; for a change that kept a file's size and times.
        allow_local_code: as in :func:`restore`.
        track: shows how far it is; by default nothing does.

    Returns:
        Plain JSON values: ``data`` (the source), ``split`` (``all`` for all images), what :meth:`Evaluation.to_json`
        gives (``n``, ``accuracy``, ``loss``, for several labels ``mean_average_precision``, and ``metric``, the name of
        the deciding one) and what :func:`describe_result` adds, ``calibration`` (expected calibration error and loss
        before and after the model's calibration; None where it has none, or for several labels), ``skipped`` and
        ``left_out``, the numbers of broken images and of other files that are left out, ``trained_on``, the number of
        images that the model was trained on (None where the run's own images cannot be read any more), ``notes`` about
        the source, and ``class_names``, the labels that the model knows.

    Raises:
        CheckpointError: the folder has no finished model.
        DataError: the source has classes that the model does not know, or images with several labels where the model
            was trained for one, or the reverse; or there is no such split.
    """
    track = track or untracked
    folder = local_folder(directory, skip=("state",))
    predictor = restore(folder, allow_local_code=allow_local_code)
    if not (folder / "recipe.yaml").is_file():
        raise CheckpointError(f"{folder}: has no recipe.yaml; evaluate needs a run's folder")
    recipe = load_recipe(folder / "recipe.yaml")
    own: Splits | None = None
    if source is None:
        split = split or "test"
        own = load_splits(recipe.data, recipe.seed, None, track, verify=verify)
        name, measured = recipe.data.source, _own_split(own, split, predictor)
    else:
        config = read_data_config(source) if isinstance(source, str) else source
        config = config.with_columns_of(recipe.data)
        name, measured = (
            config.source,
            read_known_images(config, split, predictor.class_names, predictor.multi_label, track, verify=verify),
        )
        own = _training_images(recipe, track, verify)
    before = ImageRecord.load(folder)
    changes = None if own is None or before is None else ImageRecord.of(own).changes_since(before)
    step = make_eval_step(predictor.model, predictor.image_spec, predictor.placement)
    evaluation = evaluate(
        step,
        predictor.variables,
        measured.images,
        predictor.image_spec,
        recipe.evaluate.batch_size,
        track,
        "evaluation",
        keep_logits=True,
        placement=predictor.placement,
    )
    labels, calibration = measured.images.labels, None
    if predictor.confidence is not None and labels.ndim == 1 and evaluation.logits is not None:
        calibration = describe_calibration(predictor.confidence, evaluation.logits, labels)
    return {
        "data": name,
        "split": split or "all",
        **describe_result(evaluation, labels),
        "calibration": calibration,
        "skipped": measured.skipped,
        "left_out": measured.left_out,
        "trained_on": None if own is None else _count_shared(measured.images, own.train),
        "notes": [*_say_which_images(source, name, changes), *measured.notes],
        "class_names": list(predictor.class_names),
    }


def _own_split(splits: Splits, name: SplitName, predictor: Predictor) -> KnownImages:
    if name not in splits.named():
        raise DataError(f"the run has no {name} images; it has: {', '.join(splits.named())}")
    images = splits.named()[name]
    labels = relabel(images.labels, splits.class_names, predictor.class_names)
    return KnownImages(replace(images, labels=labels), splits.skipped_from(name), 0, ())


def _say_which_images(source: str | DataConfig | None, name: str, changes: str | None) -> list[str]:
    """Lines for whoever would take these images for those of the run."""
    lines = [] if source is None else [f"measured on the images of {name}, not on the test images of the run"]
    if changes:
        lines.append(f"the run's images have changed: {changes}")
    return lines


def _training_images(recipe: Recipe, track: Track, verify: bool) -> Splits | None:
    """The run's own splits; None where they cannot be read any more."""
    try:
        return load_splits(recipe.data, recipe.seed, None, track, verify=verify)
    except DataError:
        return None


def _count_shared(images: Split, train: Split) -> int:
    assert images.stats is not None
    assert train.stats is not None
    return int(np.isin(images.stats.pixel_hash, train.stats.pixel_hash).sum())
