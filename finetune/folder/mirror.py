"""A copy of a run's folder at a URL, made anew after each saved state: a machine may vanish with its disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from finetune.errors import CheckpointError
from finetune.files import UNFINISHED
from finetune.folder import contents
from finetune.remote import fetch, is_there, push_to_url

_TRIES = 5  # to see the folder while nothing of it is replaced


class Mirror:
    """Copies beside the run. What cannot be copied is said, and the run goes on."""

    def __init__(self, folder: Path, url: str, say: Callable[[str], None]) -> None:
        self._folder, self._url, self._say = folder, url, say
        self._copier = ThreadPoolExecutor(1, "mirror")
        self._copying: Future[None] | None = None
        self._problem: str | None = None

    @property
    def busy(self) -> bool:
        return self._copying is not None and not self._copying.done()

    def update(self) -> None:
        """Copies what is there by now, unless an earlier copy is still being made."""
        if not self.busy:
            self._copying = self._copier.submit(self._copy)

    def finish(self) -> None:
        """Copies the last state of the folder, and waits for it."""
        if self._copying is not None:
            self._copying.result()
        self.update()
        self._copier.shutdown()

    def _copy(self) -> None:
        try:
            with _snapshot(self._folder) as seen:
                push_to_url(seen, self._url)
            self._problem = None
        except (CheckpointError, OSError) as error:
            if str(error) != self._problem:  # once, however often it fails
                self._say(f"save.mirror: {error}; the run goes on without it")
            self._problem = str(error)


@contextmanager
def mirrored(folder: Path, url: str | None, say: Callable[[str], None]) -> Iterator[Mirror | None]:
    """The mirror of a folder, which has at the end what the folder has; None without a URL."""
    if url is None:
        yield None
        return
    mirror = Mirror(folder, url, say)
    try:
        yield mirror
    finally:
        mirror.finish()


def bring_back(directory: Path, url: str) -> None:
    """Makes a folder that is missing from its copy at a URL, where there is one.

    Raises:
        CheckpointError: it cannot be read, or is not whole.
    """
    if not is_there(url):
        return
    fresh = directory.with_name(f"{directory.name}.{os.getpid()}{UNFINISHED}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(fetch(url), fresh)
        fresh.rename(directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def _snapshot(folder: Path) -> Iterator[Path]:
    """The folder as it is at one moment, of links to its files, which are replaced and never changed; but the log
    and TensorBoard's events."""
    seen = folder.with_name(f".{folder.name}.mirror")
    for attempt in range(_TRIES):
        shutil.rmtree(seen, ignore_errors=True)
        try:
            _link(folder / contents.STATE, seen / contents.STATE)  # first: the rest may be newer
            for path in folder.iterdir():
                if path.name != contents.STATE:
                    _link(path, seen / path.name)
            break
        except FileNotFoundError:  # replaced or removed meanwhile
            if attempt == _TRIES - 1:
                raise
    try:
        yield seen
    finally:
        shutil.rmtree(seen, ignore_errors=True)


def _link(path: Path, target: Path) -> None:
    if UNFINISHED in path.suffixes or ".orbax-checkpoint-tmp" in path.name:
        return
    if path.is_dir():
        target.mkdir(parents=True)
        for inside in path.iterdir():
            _link(inside, target / inside.name)
    elif path.name == contents.METRICS or path.parent.name == contents.EVENTS:  # files that grow
        shutil.copyfile(path, target)
    elif path.exists():
        try:
            os.link(path, target)
        except PermissionError:  # a file system without links
            shutil.copyfile(path, target)
