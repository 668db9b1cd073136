"""The files below a folder: those that are images, and why the others are left out."""

from __future__ import annotations

import os
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from finetune.errors import DataError
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
    """Everything below a folder. Links are followed; a folder is read once, by its own name where that is below too.

    Raises:
        DataError: a folder cannot be read.
    """
    reader = _Reader()
    tree = reader.read(root)
    reader.follow_links()
    return tree


class _Reader:
    """Which folders are read, and the links to folders, which are followed when all others are read."""

    def __init__(self) -> None:
        self._done: set[object] = set()
        self._links: list[tuple[Folder, Path, int]] = []

    def read(self, path: Path, depth: int = 0) -> Folder:
        folder = Folder(path)
        try:
            self._done.add(_identity(path))
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"{path}: a folder that cannot be read: {error.strerror}; make it readable, or move it elsewhere"
            ) from None
        for entry in entries:
            try:
                self._add(folder, entry, depth + 1)
            except OSError as error:
                if is_named_like_an_image(entry.name):
                    folder.images.append(path / entry.name)  # that it is broken is found when it is read
                else:
                    folder.left_out.append(f"{path / entry.name}: cannot be read: {error.strerror}")
        return folder

    def follow_links(self) -> None:
        for folder, inner, depth in self._links:  # grows, where links lead to others
            self._add_folder(folder, inner, depth)

    def _add(self, folder: Folder, entry: os.DirEntry[str], depth: int) -> None:
        inner = folder.path / entry.name
        if inner.is_dir():
            if is_hidden(entry.name):
                folder.left_out.append(f"{inner}: a hidden folder with {_count_files(inner)} files")
            elif entry.is_symlink():
                self._links.append((folder, inner, depth))
            else:
                self._add_folder(folder, inner, depth)
        elif reason := _why_no_image(entry, inner):
            folder.left_out.append(f"{inner}: {reason}")
        else:
            folder.images.append(inner)

    def _add_folder(self, folder: Folder, inner: Path, depth: int) -> None:
        if _identity(inner) in self._done:
            what = "a link to a folder" if inner.is_symlink() else "a folder"
            folder.left_out.append(f"{inner}: {what} that is read already")
        elif depth > _DEEPEST:
            folder.left_out.append(f"{inner}: more than {_DEEPEST} folders deep")
        else:
            insort(folder.folders, self.read(inner, depth), key=lambda below: below.path.name)


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
