"""Files that are written atomically, room on the disk, and the cache folder."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from finetune.errors import CheckpointError

# Left by a process that was killed while it wrote.
UNFINISHED = ".new"
REPLACED = ".old"
_ABANDONED = 3600  # seconds
_TRIES = 20  # of processes that write one folder at the same time


def file_state(path: Path) -> str:
    """What changes when a file does, as text: its size, times and inode; ``missing`` where there is none."""
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file to. It replaces ``path`` at the end, unless an error is raised.

    A link of that name is replaced, and not followed. After a power cut there is the old file or the new one.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    beside.unlink(missing_ok=True)
    try:
        yield beside
        _sync_file(beside)
        beside.replace(path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file for reading, through links, and never waits for what is none.

    Raises:
        OSError: also for a pipe, a socket and a device, which could block forever or have no end.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise OSError(errno.ESPIPE, f"{kind}, not a file", str(path))
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def sync_folder(folder: Path) -> None:
    """So that what was renamed in it stays renamed after a power cut."""
    with suppress(OSError):  # some file systems have no such thing
        _sync_file(folder)


def _sync_file(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    return hash_bytes(json.dumps(_finite(data), sort_keys=True).encode())


def hash_bytes(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@contextmanager
def folder_written_atomically(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder`` to fill. It replaces ``folder`` at the end, unless an error is raised.

    A kill between two renames leaves the earlier one as ``<folder>.old``: see :func:`restore_replaced`.

    Raises:
        FileNotFoundError: the folder around it is missing.
    """
    _remove_abandoned(folder)
    fresh, old = folder.with_name(f"{folder.name}.{os.getpid()}{UNFINISHED}"), replaced(folder)
    _remove(fresh)
    fresh.mkdir()
    try:
        yield fresh
        for path in fresh.rglob("*"):
            sync_folder(path) if path.is_dir() else _sync_file(path)
        restore_replaced(folder)
        for _ in range(_TRIES):
            try:
                fresh.rename(folder)  # onto nothing
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            _remove(old)
            with suppress(FileNotFoundError):  # another process has just done so
                folder.rename(old)
        else:
            raise CheckpointError(f"{folder}: other processes keep writing it; end them, then try again")
    except BaseException:
        _remove(fresh)
        raise
    sync_folder(folder.parent)
    _remove(old)


def replaced(folder: Path) -> Path:
    """Where the earlier folder is between two renames."""
    return folder.with_name(folder.name + REPLACED)


def restore_replaced(folder: Path) -> None:
    """Moves the earlier folder back, where a kill came between two renames."""
    if not os.path.lexists(folder):
        with suppress(FileNotFoundError):
            replaced(folder).rename(folder)


def _remove_abandoned(folder: Path) -> None:
    """What processes that have died left of the folder, unless something was written there in the last hour."""
    for path in folder.parent.glob(f"{glob.escape(folder.name)}.*{UNFINISHED}"):
        pid = path.name[len(folder.name) + 1 : -len(UNFINISHED)]
        if pid.isdecimal() and not is_process(int(pid)) and time.time() - _newest(path) > _ABANDONED:
            _remove(path)


def is_process(pid: int) -> bool:
    """Whether a process of this number is there, anybody's."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _newest(path: Path) -> float:
    """When something was last written there; a process of another host may go on writing."""
    times = [path.lstat().st_mtime]
    for inside in path.rglob("*"):
        with suppress(FileNotFoundError):
            times.append(inside.lstat().st_mtime)
    return max(times)


def _remove(path: Path) -> None:
    """A tree, a file or a link itself; what a link names stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
