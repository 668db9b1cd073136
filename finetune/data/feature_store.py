"""What a frozen network keeps of each image, computed once: memory-mapped rows on disk, or in memory.

A store is a folder with one file of rows for each array, ``store.json``, which describes them, and ``blocks``, with
a line for each block of rows that is complete: the number of rows up to its end, and the CRC-32 of the block in each
file. A store that was interrupted goes on behind its last good block.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import CheckpointError
from finetune.files import require_space, write_json

_FORMAT = 1
_ABOUT, _BLOCKS = "store.json", "blocks"


@dataclass(frozen=True)
class RowSpec:
    """Shape and dtype of one row of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "dtype": self.dtype.name}


class FeatureStore:
    """Arrays with a row for each image.

    Attributes:
        arrays: [n, ...] each, in memory or mapped from files.
        reused: rows that were there before.
    """

    def __init__(self, arrays: Sequence[np.ndarray], reused: int = 0) -> None:
        self.arrays, self.reused = arrays, reused

    def __len__(self) -> int:
        return len(self.arrays[0])

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Copies of rows."""
        return [array[rows] for array in self.arrays]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


Compute = Callable[[int], Iterable[Sequence[np.ndarray]]]  # first row -> blocks of rows, each array's in one list
Say = Callable[[str], None]


def in_memory(compute: Compute) -> FeatureStore:
    """A store that is not written anywhere."""
    blocks = list(compute(0))
    return FeatureStore([np.concatenate(parts) for parts in zip(*blocks, strict=True)])


def open_store(
    folder: Path,
    rows: int,
    specs: Sequence[RowSpec],
    compute: Compute,
    *,
    about: Mapping[str, Any],
    say: Say = lambda line: None,
    waiting: Callable[[], None] = lambda: None,
    agree: Callable[[int | None], int] = lambda rows: rows or 0,
) -> FeatureStore:
    """The store in a folder, whose missing rows are computed first.

    A store that is damaged, or is another one, is named and computed anew from the first row that is not right. While
    another process writes to it, this one waits.

    Args:
        compute: gives blocks of rows from a row on. Where it raises, the blocks before stay.
        about: plain values that say what the rows are; those of another store differ.
        say: is told, in a line, what is not as expected.
        waiting: is called now and then while another process writes; may raise.
        agree: is told how many rows are there, None where the store cannot be used, and gives how many of them to keep;
            for processes that compute together.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full.
    """
    description = {"format": _FORMAT, "rows": rows, "arrays": [spec.to_json() for spec in specs], **about}
    description = json.loads(json.dumps(description))  # as it will be read
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, say, waiting):
            writer = _Writer(folder, rows, specs)
            try:
                found = writer.start(description, say)
            except (OSError, CheckpointError):
                agree(None)
                raise
            reused = agree(found)
            if reused < found:
                writer.forget()
            if reused < rows:
                writer.fill(compute(reused), reused)
            os.utime(folder / _ABOUT)  # used now: the stores that were not make room first
            return FeatureStore(writer.map("r"), reused)
    except OSError as error:
        raise CheckpointError(f"{folder}: features cannot be kept there: {error.strerror or error}") from None


class _Writer:
    """The files of a store, while its folder is locked."""

    def __init__(self, folder: Path, rows: int, specs: Sequence[RowSpec]) -> None:
        self._folder, self._rows, self._specs = folder, rows, specs
        self._files = [folder / f"{i}.rows" for i in range(len(specs))]

    def start(self, description: Mapping[str, Any], say: Say) -> int:
        """Checks what is there; gives the number of rows that are right."""
        about = self._folder / _ABOUT
        if about.exists():
            if not self._is_described(description):
                say(f"{self._folder}: damaged, or the store of something else: its features are computed anew")
                self._reset()
            elif any(not file.is_file() or file.stat().st_size != size for file, size in self._sizes()):
                say(f"{self._folder}: files are missing or cut off: its features are computed anew")
                self._reset()
            else:
                return self._verified(say)
        else:
            self._reset()
        self._allocate()
        write_json(about, description)
        return 0

    def forget(self) -> None:
        """What is there, so that all of it is computed again."""
        (self._folder / _BLOCKS).write_text("", encoding="ascii")

    def map(self, mode: Any) -> list[np.ndarray]:
        return [
            np.memmap(file, spec.dtype, mode, shape=(self._rows, *spec.shape))
            for file, spec in zip(self._files, self._specs, strict=True)
        ]

    def fill(self, blocks: Iterable[Sequence[np.ndarray]], start: int) -> None:
        arrays = self.map("r+")
        with (self._folder / _BLOCKS).open("a", encoding="ascii") as log:
            for block in blocks:
                end = start + len(block[0])
                for array, part in zip(arrays, block, strict=True):
                    array[start:end] = part
                log.write(_line(end, arrays, start))
                log.flush()
                start = end

    def _is_described(self, description: Mapping[str, Any]) -> bool:
        try:
            return bool(json.loads((self._folder / _ABOUT).read_text(encoding="utf-8")) == description)
        except ValueError:
            return False

    def _sizes(self) -> list[tuple[Path, int]]:
        return [(file, self._rows * spec.nbytes) for file, spec in zip(self._files, self._specs, strict=True)]

    def _verified(self, say: Say) -> int:
        """Rows up to the first block that is not as it was written; what is behind is forgotten."""
        log = self._folder / _BLOCKS
        lines = log.read_text(encoding="ascii", errors="replace").splitlines(keepends=True) if log.is_file() else []
        arrays, start, kept = self.map("r"), 0, 0
        for line in lines:
            number = line.partition(" ")[0]
            end = int(number) if number.isdecimal() else 0
            if not start < end <= self._rows or line != _line(end, arrays, start):
                say(f"{self._folder}: damaged behind row {start}: its features are computed anew from there")
                break
            start, kept = end, kept + 1
        if kept < len(lines):
            log.write_text("".join(lines[:kept]), encoding="ascii")
        return start

    def _reset(self) -> None:
        """Without what was there. Who has it open keeps it."""
        for path in self._folder.iterdir():
            if path.is_file() or path.is_symlink():
                path.unlink()

    def _allocate(self) -> None:
        """All of the room at once: a memory map on a disk that is full would end the process."""
        _make_room(self._folder, sum(size for _, size in self._sizes()))
        for file, size in self._sizes():
            with file.open("wb") as stream:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(stream.fileno(), 0, size)
                else:  # macOS
                    for _ in range(0, size, 2**20):
                        stream.write(bytes(2**20))
                    stream.truncate(size)


def _line(end: int, arrays: Sequence[np.ndarray], start: int) -> str:
    sums = (zlib.crc32(np.ascontiguousarray(array[start:end]).view(np.uint8).data) for array in arrays)
    return " ".join([str(end), *(f"{value:08x}" for value in sums)]) + "\n"


@contextmanager
def _locked(folder: Path, say: Say, waiting: Callable[[], None]) -> Iterator[None]:
    """One process at a time; the system ends the lock of a process that is killed."""
    with folder.with_name(f"{folder.name}.lock").open("a") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say(f"{folder}: another process computes these features: waiting for it")
                told = True
                waiting()
                time.sleep(0.2)
        yield


def _make_room(folder: Path, needed: int) -> None:
    """Removes the stores that have not been used for longest where the disk has too little room.

    Raises:
        CheckpointError: the room is not enough even so.
    """
    others = [path for path in folder.parent.iterdir() if path != folder and (path / _ABOUT).is_file()]
    for other in sorted(others, key=lambda path: (path / _ABOUT).stat().st_mtime):
        if shutil.disk_usage(folder).free >= needed:
            break
        with other.with_name(f"{other.name}.lock").open("a") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other)
    require_space(folder, needed)
