"""Files that are written atomically, room on the disk, and the cache folder."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from finetune.errors import CheckpointError

# Left by a process that was killed while it wrote.
UNFINISHED = ".new"
REPLACED = ".old"


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file to. It replaces ``path`` at the end, unless an error is raised."""
    beside = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file for reading, through links, and never waits for what is none.

    Raises:
        OSError: also for a pipe, a socket and a device, which could block forever or have no end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is opened at once
    if stat.S_ISREG(mode := os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.ESPIPE, f"{'a pipe' if stat.S_ISFIFO(mode) else 'a device'}, not a file", str(path))


def write_text(path: Path, text: str) -> None:
    with written_atomically(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be no UTF-8


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_text(path, json_text(data, indent=1) + "\n")


def json_text(data: Any, indent: int | None = None) -> str:
    """Valid JSON, which has no numbers that are not finite: they become null."""
    return json.dumps(_finite(data), indent=indent, allow_nan=False)


def hash_json(data: Any) -> str:
    """SHA-256 over JSON data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(_finite(data), sort_keys=True).encode()).hexdigest()


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@contextmanager
def folder_written_atomically(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder`` to fill. It replaces ``folder`` at the end, unless an error is raised."""
    fresh, old = (folder.with_name(folder.name + suffix) for suffix in (UNFINISHED, REPLACED))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def require_space(directory: Path, needed: int) -> None:
    """Before ``needed`` bytes are written below ``directory``, which need not exist yet.

    Raises:
        CheckpointError: the disk has less room than that.
    """
    free = shutil.disk_usage(_existing(directory)).free
    if free < needed:
        raise CheckpointError(
            f"{directory}: no room: {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free; "
            "make room, then continue with --resume"
        )


def free_gigabytes() -> float:
    """Room on the disk of the cache folder."""
    return shutil.disk_usage(_existing(cache_folder().absolute())).free / 1e9


def _existing(path: Path) -> Path:
    return next(above for above in (path, *path.parents) if above.exists())


def cache_folder() -> Path:
    """$FINETUNE_CACHE, or a folder ``finetune`` in the user's cache folder."""
    if chosen := os.environ.get("FINETUNE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune"
