"""The tensors in a checkpoint's folder, read one by one from memory-mapped safetensors files."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open

from finetune.errors import ModelError, first_line, shown
from finetune.untrusted import JSON_BYTES, parse_json, read_json, require_file

SINGLE_FILES = ("model.safetensors", "open_clip_model.safetensors")
_INDEX = "model.safetensors.index.json"
_REOPEN_AFTER = 2**28  # bytes
_TENSORS, _NAME = 20_000, 300  # in a file; characters of a name, which many patterns are matched with
# Prefixes of DataParallel and of averaged models, torch.compile, PEFT, Lightning and other training programs.
_WRAPPERS = ("module.", "_orig_mod.", "base_model.", "model.", "ema_model.", "ema.", "_forward_module.", "net.")
_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
_AVERAGED = "n_averaged"  # what torch.optim.swa_utils adds
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")


@dataclass(frozen=True)
class LazyArray:
    """An array that ``np.asarray`` reads, so that a checkpoint is never in memory twice.

    Attributes:
        shape: known without reading it.
        read: returns the array.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.read()
        return array if dtype is None else array.astype(dtype, copy=False)


def require_finite(array: np.ndarray, name: str) -> np.ndarray:
    """The same array. Takes 0.05 s per gigabyte of float32, and 0.5 s of bfloat16.

    Raises:
        ModelError: it has NaN or infinite values.
    """
    if array.dtype.kind in "biu":
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float32)) or np.isfinite(array).all():  # a sum of large numbers overflows
            return array
    raise ModelError(
        f"tensor '{shown(name)}': {np.sum(~np.isfinite(array)):,} of its {array.size:,} values are not finite (NaN or "
        "infinity): the file is damaged, or its training diverged; use other weights"
    )


class TensorFolder(Mapping[str, LazyArray]):
    """Name -> array of every tensor in a folder, in one file or sharded, in the dtype that it was saved in.

    Attributes:
        notes: lines about other weights in the folder, and about names.

    Raises:
        ModelError: there are no safetensors, or files are missing or damaged.
    """

    def __init__(self, folder: Path, files: Sequence[str] = SINGLE_FILES) -> None:
        self.folder = folder
        self.notes: tuple[str, ...] = ()
        self._tensors: dict[str, tuple[_File, str, tuple[int, ...]]] = {}  # name -> file, name in it, shape
        paths = _weight_files(folder, files)
        others = [name for name in (*files, _INDEX) if (folder / name).is_file() and folder / name not in paths]
        if paths[0].name in files and others:
            self.notes = (f"{paths[0]} is read, and {' and '.join(others)} beside it is not",)
        for path in paths:
            file = _File(path)
            handle = file.open()
            for name in handle.keys():  # noqa: SIM118 (a safetensors handle, not a dict)
                self._tensors[name] = file, name, tuple(handle.get_slice(name).get_shape())

    def without_wrapper(self) -> TensorFolder | None:
        """The same tensors without the prefix that a wrapper such as DataParallel or torch.compile left in all names;
        None where there is none."""
        prefixes = []
        names = [name for name in self._tensors if name != _AVERAGED]
        while wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in names)), None):
            prefixes.append(wrapper)
            names = [name.removeprefix(wrapper) for name in names]
        if not prefixes:
            return None
        prefix, stripped = "".join(prefixes), copy(self)
        stripped._tensors = {
            name.removeprefix(prefix): tensor for name, tensor in self._tensors.items() if name != _AVERAGED
        }
        stripped.notes = (*self.notes, f"{self.folder}: the prefix {prefix!r} of all tensors' names is left out")
        return stripped

    def __getitem__(self, name: str) -> LazyArray:
        file, name_in_file, shape = self._tensors[name]
        return LazyArray(shape, lambda: file.read(name_in_file))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _File:
    """One memory-mapped safetensors file.

    Pages that were read stay mapped, and count as memory of this process, while the file is open; so it is reopened
    after every quarter of a gigabyte.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: Any = None
        self._read_bytes = 0

    def open(self) -> Any:
        if self._handle is None or self._read_bytes > _REOPEN_AFTER:
            self._handle, self._read_bytes = None, 0
            self._handle = _open(self._path)
        return self._handle

    def read(self, name: str) -> np.ndarray:
        if (dtype := self.open().get_slice(name).get_dtype()) not in _DTYPES:
            raise ModelError(
                f"{self._path}: tensor {name!r} is stored as {dtype}, which is quantized and means nothing without its "
                "scales; save the model as float32, float16 or bfloat16"
            )
        try:
            array = self.open().get_tensor(name)
        except Exception as error:  # the binding's own type, and others for a dtype that NumPy lacks
            raise ModelError(f"{self._path}: tensor {name!r} cannot be read: {error}") from None
        self._read_bytes += array.nbytes
        return array


def _weight_files(folder: Path, single_files: Sequence[str]) -> list[Path]:
    for name in single_files:  # first, as transformers does: an index may be of an earlier save
        if (folder / name).is_file():
            return [folder / name]
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
            files = [folder / _shard(name) for name in names]
            if not files:
                raise ValueError("names no files")
        except (ModelError, KeyError, TypeError, AttributeError, ValueError):
            raise ModelError(f"{index}: not a safetensors index, which has a 'weight_map'; download it again") from None
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            count = f"{len(missing)} of {len(files)} shards are missing"
            raise ModelError(f"{folder}: {count}: {', '.join(missing)}; download them")
        return files
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder}: has {', '.join(pickled)} but no safetensors; pickled weights can run code and are not read; "
            "save the model again with save_pretrained(..., safe_serialization=True)"
        )
    raise ModelError(f"{folder}: no weights; expected model.safetensors, or shards with model.safetensors.index.json")


def _shard(name: str) -> str:
    """A shard's name, which is that of a file in the same folder."""
    if not re.fullmatch(r"[\w.-]+\.safetensors", name):
        raise ValueError(name)
    return name


def _open(file: Path) -> Any:
    _check_header(file)
    try:
        return safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise _incomplete(file, first_line(error)) from None
    except Exception as error:  # the binding raises more than its own type
        raise ModelError(f"{shown(file)}: cannot be read: {first_line(error)}") from None


def _check_header(file: Path) -> None:
    """What the library lets through: a file that is none, names that stand twice, and endless headers.

    Raises:
        ModelError: the header is not that of a model.
    """
    require_file(file, sys.maxsize)
    try:
        with file.open("rb") as stream:
            length, size = int.from_bytes(stream.read(8), "little"), file.stat().st_size
            if not 2 <= length <= size - 8:
                raise _incomplete(file, f"its header claims {length:,} bytes")
            header = parse_json(stream.read(length)) if length <= JSON_BYTES else {}
    except OSError as error:
        raise ModelError(f"{shown(file)}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _incomplete(file, f"its header: {error}") from None
    if not isinstance(header, dict):
        raise _incomplete(file, "its header is no object")
    if length > JSON_BYTES or len(header) > _TENSORS:
        raise ModelError(f"{shown(file)}: a header of {length:,} bytes; no model has more than {_TENSORS:,} tensors")
    if long := next((name for name in header if len(name) > _NAME), None):
        raise ModelError(f"{shown(file)}: the name of tensor '{shown(long)}' has more than {_NAME} characters")


def _incomplete(file: Path, cause: str) -> ModelError:
    size = file.stat().st_size
    return ModelError(f"{shown(file)}: not a complete safetensors file ({size:,} bytes): {cause}; download it again")
