"""Folders of image files, one folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finetune.data.labeled_images import LabeledImages
from finetune.data.sources.split_names import SPLIT_NAMES
from finetune.errors import DataError
from finetune.images.open import EXTENSIONS


def read_folders(root: Path) -> dict[str, LabeledImages]:
    """Class folders in ``root`` itself, or inside its folders train/, validation/ and test/.

    Raises:
        DataError: a split has fewer than two class folders, or one without images.
    """
    folders = {path.name.lower(): path for path in _subfolders(root)}
    splits = {split: next((folders[n] for n in names if n in folders), None) for split, names in SPLIT_NAMES.items()}
    if splits["train"] is None:
        return {"train": _read_split(root)}
    return {split: _read_split(path) for split, path in splits.items() if path is not None}


def _read_split(folder: Path) -> LabeledImages:
    names = tuple(sorted(path.name for path in _subfolders(folder)))
    if len(names) < 2:
        raise DataError(f"data.source: {folder}: needs a folder for each of at least two classes; has {len(names)}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        images = sorted(p for p in (folder / name).rglob("*") if p.is_file() and p.suffix.lower() in EXTENSIONS)
        if not images:
            raise DataError(f"{folder / name}: no images ({', '.join(sorted(EXTENSIONS))}); each class needs some")
        paths += images
        labels += [label] * len(images)
    return LabeledImages(paths, np.array(labels, np.int32), names, str(folder))


def _subfolders(path: Path) -> list[Path]:
    return [inner for inner in path.iterdir() if inner.is_dir() and inner.name[0] != "."]
