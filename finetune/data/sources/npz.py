"""Files of NumPy arrays (.npz): headers are checked before memory is taken, and no pickle is read."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import DataError, first_line

_BOMB = 1 << 28, 200  # bytes of an array, and its size by that in the file, from which on together it is one
_MANY = 10_000  # arrays


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype
    size: int  # bytes of the array
    stored: int  # bytes in the file


class NpzFile:
    """What a .npz file says that it holds, and the arrays themselves when they are asked for.

    Raises:
        DataError: it is none, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._headers = self._open(self._read_headers)

    @property
    def names(self) -> list[str]:
        return list(self._headers)

    def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """
        Raises:
            DataError: an array is of objects, is not of the size that its header says, or does not fit into memory.
        """
        names = list(names)
        for name in names:
            self._check(name)
        needed, memory = sum(self._headers[name].size for name in names), _physical_memory()
        if needed > memory:
            raise DataError(
                f"{self._path}: its arrays need {needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB; "
                "save the images as files"
            )
        return self._open(lambda archive: {name: self._read_array(archive, name) for name in names})

    def _open(self, read: Any) -> Any:
        try:
            with zipfile.ZipFile(self._path) as archive:
                return read(archive)
        except DataError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy raise many types
            raise DataError(f"{self._path}: cannot be read as arrays: {first_line(error)}") from None

    def _read_headers(self, archive: zipfile.ZipFile) -> dict[str, _Header]:
        members = archive.infolist()
        if len(members) > _MANY:
            raise DataError(f"{self._path}: holds {len(members):,} files; save images and labels as one array each")
        headers: dict[str, _Header] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in headers:
                raise DataError(f"{self._path}: two arrays are called {name!r}; save it anew")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version not in _READERS:
                    raise DataError(f"{self._path}: {name}: NumPy's format {version} is for records, not for images")
                shape, _, dtype = _READERS[version](file)
                headers[name] = _Header(shape, dtype, member.file_size - file.tell(), member.compress_size)
        return headers

    def _check(self, name: str) -> None:
        header, where = self._headers[name], f"{self._path}: {name}"
        if header.dtype.hasobject:
            raise DataError(f"{where}: cannot be read as arrays: it holds Python objects, which are not loaded")
        said = math.prod(header.shape) * header.dtype.itemsize
        if min(header.shape, default=0) < 0 or said != header.size:
            raise DataError(
                f"{where}: damaged: its header says {header.dtype} {list(header.shape)}, {said:,} bytes, and it holds "
                f"{header.size:,}"
            )
        if header.size > _BOMB[0] and header.size > _BOMB[1] * header.stored:
            raise DataError(
                f"{where}: {header.size / 1e6:,.0f} MB in {header.stored / 1e6:,.1f} MB of the file: too large to open "
                "safely; save it uncompressed (numpy.savez)"
            )

    def _read_array(self, archive: zipfile.ZipFile, name: str) -> np.ndarray:
        member = name if name in archive.namelist() else f"{name}.npy"
        with archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _physical_memory() -> int:
    """Bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
