"""A folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finetune.data.sources.labels import SPLIT_NAMES, LabeledImages
from finetune.errors import DataError
from finetune.images.open import EXTENSIONS


def read_folders(root: Path) -> dict[str, LabeledImages]:
    """Class folders at the top, or inside train/, validation/ and test/. Labels go by name, never by position."""
    inside = {path.name.lower(): path for path in _folders(root)}
    named = {split: next((inside[n] for n in names if n in inside), None) for split, names in SPLIT_NAMES.items()}
    if named["train"] is None:
        return {"train": _read(root)}
    return {split: _read(path) for split, path in named.items() if path is not None}


def _read(folder: Path) -> LabeledImages:
    names = tuple(sorted(path.name for path in _folders(folder)))
    if len(names) < 2:
        raise DataError(f"data.source: {folder}: needs a folder for each of at least two classes; has {len(names)}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(p for p in (folder / name).rglob("*") if p.is_file() and p.suffix.lower() in EXTENSIONS)
        if not found:
            raise DataError(f"{folder / name}: no images ({', '.join(sorted(EXTENSIONS))}); each class needs some")
        paths += found
        labels += [label] * len(found)
    return LabeledImages(paths, np.array(labels, np.int32), names, str(folder))


def _folders(path: Path) -> list[Path]:
    return [inner for inner in path.iterdir() if inner.is_dir() and inner.name[0] != "."]
