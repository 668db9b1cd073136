"""The files below a folder: those that are images, and why the others are left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from finetune.images.formats import is_image_by_content, is_named_like_an_image

_SYSTEM = frozenset({"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"})

_DEEPEST = 100  # folders inside one another


@dataclass(eq=False)
class Folder:
    """A folder and what is in it, in the order of names.

    Attributes:
        images: directly inside.
        folders: those inside, without hidden ones.
        left_out: "<path>: <reason>" for each file directly inside that is no image, and for hidden folders.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def walk(self) -> Iterator[Folder]:
        """The folder and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()

    @cached_property
    def all_images(self) -> list[Path]:
        return sorted(path for folder in self.walk() for path in folder.images)

    @property
    def all_left_out(self) -> list[str]:
        return [line for folder in self.walk() for line in folder.left_out]


def read_tree(root: Path) -> Folder:
    """Everything below a folder. Links are followed, each to a folder once and never in a circle."""
    return _read(root, (_identity(root),), set())


def _read(path: Path, above: tuple[object, ...], linked: set[object]) -> Folder:
    folder = Folder(path)
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        folder.left_out.append(f"{path}: cannot be read: {error.strerror}")
        return folder
    for entry in entries:
        try:
            _add(folder, entry, above, linked)
        except OSError as error:
            folder.left_out.append(f"{path / entry.name}: cannot be read: {error.strerror}")
    return folder


def _add(folder: Folder, entry: os.DirEntry[str], above: tuple[object, ...], linked: set[object]) -> None:
    inner = folder.path / entry.name
    if inner.is_dir():
        identity = _identity(inner)
        if is_hidden(entry.name):
            folder.left_out.append(f"{inner}: a hidden folder with {_count_files(inner)} files")
        elif entry.is_symlink() and (identity in above or identity in linked):
            folder.left_out.append(f"{inner}: a link to a folder that is read already")
        elif len(above) > _DEEPEST:
            folder.left_out.append(f"{inner}: more than {_DEEPEST} folders deep")
        else:
            if entry.is_symlink():
                linked.add(identity)
            folder.folders.append(_read(inner, (*above, identity), linked))
    elif reason := _why_no_image(entry, inner):
        folder.left_out.append(f"{inner}: {reason}")
    else:
        folder.images.append(inner)


def _why_no_image(entry: os.DirEntry[str], path: Path) -> str | None:
    """None for what is used as an image, or is named like one: that it is broken is found when it is read."""
    if is_hidden(entry.name):
        return "a hidden file"
    if not path.is_file():
        if entry.is_symlink() and not path.exists():
            return None if is_named_like_an_image(entry.name) else "a link to nothing"
        return "not a regular file"
    if is_named_like_an_image(entry.name) or is_image_by_content(path):
        return None
    return "not an image"


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _identity(path: Path) -> object:
    status = path.stat()
    return status.st_dev, status.st_ino


def _count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))
