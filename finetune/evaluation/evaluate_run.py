"""Measuring a saved model again, on the test images of its run or on others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.labeled_images import Split
from finetune.data.splits import load_splits
from finetune.errors import CheckpointError, DataError
from finetune.evaluation.metrics import evaluate
from finetune.evaluation.steps import make_eval_step
from finetune.inference.predictor import restore
from finetune.recipe import load_recipe


def evaluate_run(directory: str | Path, source: str | None = None, *, allow_local_code: bool = False) -> dict[str, Any]:
    """Measures a run's model on test images.

    Args:
        directory: the run's folder.
        source: another data source; its classes are matched to the model's by name.
        allow_local_code: as in :func:`restore`.

    Returns:
        Plain JSON values: ``data`` (the source), ``split``, what :meth:`Evaluation.to_json` gives (``n``, ``accuracy``,
        ``loss``, for several labels ``mean_average_precision``, and ``metric``, the name of the deciding one), and
        ``skipped``, the number of broken images that are left out.

    Raises:
        CheckpointError: the folder has no finished model.
        DataError: the source has classes that the model does not know, or images with several labels where the model
            was trained for one, or the reverse.
    """
    folder = Path(directory)
    predictor = restore(folder, allow_local_code=allow_local_code)
    if not (folder / "recipe.yaml").is_file():
        raise CheckpointError(f"{folder}: has no recipe.yaml; evaluate needs a run's folder")
    recipe = load_recipe(folder / "recipe.yaml")
    data = recipe.data if source is None else recipe.data.for_source(source)
    splits = load_splits(data, recipe.seed)
    unknown = sorted(set(splits.class_names) - set(predictor.class_names))
    if unknown:
        raise DataError(
            f"{data.source}: classes that the model does not know: {', '.join(unknown)}; "
            f"it knows: {', '.join(predictor.class_names)}"
        )
    to_model = np.array([predictor.class_names.index(name) for name in splits.class_names], np.int32)
    if splits.multi_label != predictor.multi_label:
        labels = {False: "one class for each image", True: "several classes for an image"}
        raise DataError(
            f"{data.source}: has {labels[splits.multi_label]}; "
            f"the model was trained for {labels[predictor.multi_label]}"
        )
    test = replace(splits.test, labels=_as_model_labels(splits.test, to_model, len(predictor.class_names)))
    step = make_eval_step(predictor.model, predictor.image_spec)
    evaluation = evaluate(step, predictor.variables, test, predictor.image_spec, recipe.evaluate.batch_size)
    return {"data": data.source, "split": "test", **evaluation.to_json(), "skipped": splits.skipped_from("test")}


def _as_model_labels(split: Split, to_model: np.ndarray, num_classes: int) -> np.ndarray:
    """The split's labels with the model's class indices; ``to_model`` is int [classes of the split]."""
    if not split.multi_label:
        return to_model[split.labels]
    labels = np.zeros((len(split), num_classes), np.float32)
    labels[:, to_model] = split.labels
    return labels
