"""Folders of image files, one folder for each class."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune.data.labeled_images import LabeledImages
from finetune.data.sources.file_tree import Folder, read_tree
from finetune.data.sources.labels import clean_name, declared_names
from finetune.data.sources.split_names import SPLITS, canonical_split
from finetune.errors import DataError, listed

_STRAY = 0.1  # share of a split's images that may lie beside its class folders


def read_folders(root: Path) -> dict[str, LabeledImages]:
    """Class folders in ``root`` itself, or inside its folders for splits, such as ``train/`` and ``test_set/``.

    Raises:
        DataError: it is not clear which folders are classes and which are splits, or there are fewer than two classes.
    """
    tree = _innermost(read_tree(root))
    named = {folder.path.name: canonical_split(folder.path.name, loose=True) for folder in tree.folders}
    full = [folder for folder in tree.folders if folder.all_images]
    splits = [folder for folder in full if named[folder.path.name] and _holds_classes(folder)]
    classes = [folder for folder in full if folder not in splits]
    if not splits:
        _refuse_splits_without_classes(root, full, named)
        return {"train": _read_classes(tree, least=2)}
    if classes and (len(splits) < 2 or any(named[folder.path.name] for folder in classes)):
        raise DataError(
            f"data.source: {root}: {_names(splits)} could be a split or a class beside {_names(classes)}; "
            "give the folder that holds the classes, or rename it"
        )
    by_split: dict[str, Folder] = {}
    for folder in splits:
        split = named[folder.path.name] or ""
        if split in by_split:
            names = _names([by_split[split], folder])
            raise DataError(f"data.source: {root}: two folders for one split, {names}; rename or remove one")
        by_split[split] = folder
    if "train" not in by_split:
        raise DataError(
            f"data.source: {root}: has folders for splits ({_names(splits)}), but none to train on; "
            "name one train, or give the folder that holds the classes"
        )
    beside = [f"{path}: beside the folders of the splits" for path in tree.images]
    beside += [f"{path}: in none of the splits" for folder in classes for path in folder.all_images]
    beside += tree.left_out + [line for f in tree.folders if f not in splits for line in f.all_left_out]
    read = {
        split: _read_classes(_innermost(by_split[split]), least=2 if split == "train" else 1)
        for split in SPLITS
        if split in by_split
    }
    notes = [
        f"{folder.path}: no images inside, so no split"
        for folder in tree.folders
        if named[folder.path.name] and not folder.all_images
    ]
    read["train"] = read["train"].with_left_out(beside).with_notes(notes)
    return read


def _innermost(folder: Folder) -> Folder:
    """The folder that holds the classes or splits, where folders around it hold nothing else, as archives have them."""
    full = [inner for inner in folder.folders if inner.all_images]
    if len(full) != 1 or folder.images or any(map(_lacks_images, folder.folders)):
        return folder
    inner = _innermost(full[0])
    if sum(bool(below.all_images) for below in inner.folders) < 2:
        return folder
    around = [line for other in folder.folders if other is not full[0] for line in other.all_left_out]
    return replace(inner, left_out=[*folder.left_out, *around, *inner.left_out])


def _lacks_images(folder: Folder) -> bool:
    """Whether it is a class or a split whose images are missing: it holds no file, or only others, as a split."""
    if folder.all_images:
        return False
    return not folder.all_left_out or canonical_split(folder.path.name, loose=True) is not None


def _holds_classes(folder: Folder) -> bool:
    """Whether images are in the folders inside, but for a few."""
    return len(folder.images) <= _STRAY * len(folder.all_images)


def _refuse_splits_without_classes(root: Path, full: list[Folder], named: dict[str, str | None]) -> None:
    splits = {named[folder.path.name] for folder in full}
    if len(full) > 1 and None not in splits and len(splits) == len(full) and "train" in splits:
        raise DataError(
            f"data.source: {root}: {_names(full)} look like splits, but have no folders for classes inside; "
            "put the images of each class into a folder of its own, or give a table"
        )


def _read_classes(folder: Folder, least: int) -> LabeledImages:
    """The images of each class, of which there have to be so many, and a line for each file that is none of them."""
    full = [inner for inner in folder.folders if inner.all_images]
    names = {inner.path.name: class_name(inner.path.name) for inner in full}
    declared = tuple(sorted(declared_names(list(names.values()), f"data.source: {folder.path}")))
    if len(declared) < least:
        raise DataError(
            f"data.source: {folder.path}: needs a folder with images for each of at least two classes; "
            f"has {_names(full) or 'none'}{_hint(folder)}"
        )
    by_class = {clean_name(names[inner.path.name]): inner.all_images for inner in full}
    paths = [path for name in declared for path in by_class[name]]
    labels = np.repeat(np.arange(len(declared), dtype=np.int32), [len(by_class[name]) for name in declared])
    left_out = [f"{path}: beside the class folders, in none of them" for path in folder.images] + folder.all_left_out
    notes = [f"{inner.path}: no images inside, so no class" for inner in folder.folders if not inner.all_images]
    return LabeledImages(paths, labels, declared, str(folder.path), tuple(left_out), tuple(notes))


def class_name(folder_name: str) -> str:
    """A folder's name as text; bytes that are no UTF-8 are read as Latin-1."""
    try:
        return os.fsencode(folder_name).decode("utf-8")
    except UnicodeDecodeError:
        return os.fsencode(folder_name).decode("latin-1")


def _names(folders: list[Folder]) -> str:
    return listed([f"{folder.path.name}/" for folder in folders])


def _hint(folder: Folder) -> str:
    """Where the classes may be instead."""
    tables = sorted(path.name for path in folder.path.glob("*.[ct]sv"))
    return f"; if {tables[0]} is a table of the images, give that as data.source" if tables else ""
