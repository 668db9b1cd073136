"""The data doctor: what a probe on pretrained features, and the pixels themselves, say against labeled images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.duplicates import group_duplicates
from finetune.data.labeled_images import concatenate
from finetune.data.splits import Splits, describe_skipped, load_splits
from finetune.data.stratify import grouped_folds
from finetune.distributed.sharding import on_all_devices
from finetune.errors import CheckpointError, DataError, ModelError, RecipeError
from finetune.evaluation.outliers import neighbor_distances
from finetune.files import write_json, write_text
from finetune.folder.run_folder import is_run_or_bundle
from finetune.models.backbone import Backbone
from finetune.models.build import attach_head, open_backbone
from finetune.recipe import HeadConfig, PretrainedConfig, Recipe
from finetune.report.corrected_labels import folder_of_images, write_corrected
from finetune.report.doctor_page import make_page
from finetune.report.findings import (
    Evidence,
    class_overlap,
    conflicting_duplicates,
    label_errors,
    leakage,
    outliers,
    probe_accuracy,
    small_classes,
)
from finetune.run.checks import check_class_count
from finetune.run.features import RunFeatures
from finetune.run.progress import Progress
from finetune.training.heads.linear_probe import out_of_fold

FOLDS = 5
STRENGTHS = tuple(10.0**e for e in range(5))  # on features of variance 1; wrong labels ask for strong ones
_BATCH = 256


def diagnose_data(
    recipe: Recipe,
    *,
    data: Any = None,
    output: str | Path | None = None,
    write: str | Path | None = None,
    allow_local_code: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Looks for what is wrong with a recipe's images and labels, in all of its splits; the data are not changed.

    The recipe's backbone gives features, and its stages play no part. Linear probes on them, each fitted without a fold
    of the images, say which labels are likely wrong and which classes overlap; duplicates are in one fold, so that they
    cannot vouch for each other.

    Args:
        data: the datasets, for ``source: memory``.
        output: a folder for ``doctor.html`` and ``doctor.json``; None writes neither.
        write: a .csv file for the images with corrected labels; see
            :func:`~finetune.report.corrected_labels.write_corrected`.
        allow_local_code: permit backbones from outside this toolkit.
        quiet: print nothing.

    Returns:
        JSON values: ``recipe``, ``backbone``, ``splits``, ``classes``, ``notes``, ``probe``, ``label_errors``,
        ``conflicts``, ``outliers``, ``overlap``, ``leakage`` and ``small_classes``, as the functions of
        :mod:`finetune.report.findings` give them.

    Raises:
        FinetuneError: a backbone or images that cannot be used, or a place that cannot be written to.
    """
    folder = None if output is None else check_folder(Path(output))
    table = None if write is None else check_table(Path(write))
    with Progress(quiet) as display:
        backbone = open_backbone(recipe.backbone, seed=recipe.seed, allow_local_code=allow_local_code)
        splits = load_splits(recipe.data, recipe.seed, data, display.track)
        check_class_count(recipe, splits)
        if table is not None and splits.multi_label:
            raise DataError("--write: the images have several labels each, and corrected tables are for one label each")
        evidence = _gather(recipe, splits, backbone, display)
        with display.busy("findings"):
            result = {
                "recipe": recipe.name,
                "backbone": recipe.backbone.origin,
                "splits": {name: len(split) for name, split in splits.named().items()},
                "classes": list(splits.class_names),
                "notes": _notes(recipe, evidence),
                "probe": probe_accuracy(evidence),
                "label_errors": label_errors(evidence),
                "conflicts": conflicting_duplicates(evidence),
                "outliers": outliers(evidence),
                "overlap": class_overlap(evidence),
                "leakage": leakage(evidence),
                "small_classes": small_classes(splits),
            }
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "doctor.json", result)
            write_text(folder / "doctor.html", make_page(result, evidence.images))
        if table is not None:
            write_corrected(table, result, evidence, display.track)
    return result


def _gather(recipe: Recipe, splits: Splits, backbone: Backbone, display: Progress) -> Evidence:
    """Features, and everything that follows from them and from the pixels."""
    classifier, variables = attach_head(backbone, HeadConfig(), len(splits.class_names), seed=recipe.seed)
    features = RunFeatures(backbone.image_spec, _BATCH, display, lambda when: None, on_all_devices())
    x = np.concatenate(
        [features.head_inputs(classifier, variables, split, name) for name, split in splits.named().items()]
    )
    if not np.isfinite(x).all():
        raise ModelError(f"{recipe.backbone.origin}: gives features that are not finite: is the checkpoint damaged?")
    images = concatenate(list(splits.named().values()))
    with display.busy("duplicates"):
        groups = group_duplicates(images)
    with display.busy("nearest neighbors"):
        distances = neighbor_distances(x)
    probabilities = None
    if not splits.multi_label:
        with display.busy(f"probes of {FOLDS} folds"):
            folds = grouped_folds(images.labels, groups, FOLDS, recipe.seed)
            probabilities = out_of_fold_probabilities(x, images.labels, len(splits.class_names), folds)
    return Evidence(splits, groups, distances, probabilities)


def out_of_fold_probabilities(
    features: np.ndarray, labels: np.ndarray, num_classes: int, folds: np.ndarray
) -> np.ndarray | None:
    """What linear probes say of the images that they have not learned from.

    Args:
        features: float32 [n, d].
        labels: int [n].
        folds: int [n], -1 for images that are in none.

    Returns:
        float32 [n, num_classes], NaN for images in no fold; None where all are in none.
    """
    from scipy.special import softmax

    if (folds < 0).all():
        return None
    scale = features.std()  # one number for all features, so that one set of strengths suits every backbone
    logits = out_of_fold(features / (scale or 1.0), labels, num_classes, folds, STRENGTHS).logits
    return np.asarray(softmax(logits, axis=1))


def _notes(recipe: Recipe, evidence: Evidence) -> list[str]:
    """What a reader has to know about checks that are missing or weak."""
    notes = [*evidence.splits.notes, *describe_skipped(evidence.splits.skipped)]
    if evidence.images.multi_label:
        notes.append("these images have several labels each: label errors and class overlap are not looked for")
    elif evidence.probabilities is None:
        notes.append("every class has a single image: label errors and class overlap cannot be looked for")
    elif left_out := len(evidence.images) - len(evidence.judged):
        notes.append(f"{left_out} images have no other of their class to compare with: their labels are not judged")
    if not isinstance(recipe.backbone, PretrainedConfig) and recipe.backbone.weights is None:
        notes.append(
            "the backbone's weights are random: what follows from its features (all but duplicates, leakage and small "
            "classes) says little; take a pretrained one"
        )
    return notes


def check_folder(folder: Path) -> Path:
    """Where the page goes.

    Raises:
        CheckpointError: that is a file, the folder of a run, or cannot be written to.
    """
    _check_writable(folder, "the output is a folder", "--output")
    if folder.is_dir() and is_run_or_bundle(folder):
        raise CheckpointError(f"{folder}: holds a run; choose another folder with --output")
    return folder


def check_table(path: Path) -> Path:
    """Where the corrected labels go; nothing is replaced, as it may be the data or hold a person's corrections.

    Raises:
        RecipeError: the file is no .csv, or it exists.
        CheckpointError: its folder cannot be written to.
    """
    if path.suffix.lower() != ".csv":
        raise RecipeError(f"--write: {path}: the table is a .csv file: give it that ending")
    for existing in (path, folder_of_images(path)):
        if existing.exists():
            raise RecipeError(f"--write: {existing}: exists already, and is not replaced; choose another name")
    _check_writable(path.parent, "the table goes into a folder", "--write")
    return path


def _check_writable(folder: Path, purpose: str, option: str) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise CheckpointError(f"{existing}: {purpose}, and a file has that name; choose another with {option}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise CheckpointError(f"{existing}: cannot be written to; choose another folder with {option}")
