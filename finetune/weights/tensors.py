"""Tensors of a checkpoint folder, read from safetensors one by one (the files are memory-mapped)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open

from finetune.errors import ModelError

SINGLE_FILES = ("model.safetensors", "open_clip_model.safetensors")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")


class TensorFolder(Mapping[str, np.ndarray]):
    """Name -> array of every tensor in a folder, single-file or sharded, in the dtype it was saved in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[Path, Any] = {}
        self._home: dict[str, Path] = {}
        for file in _weight_files(folder):
            self._files[file] = _open(file)
            for name in self._files[file].keys():  # noqa: SIM118 (a safetensors handle, not a dict)
                self._home[name] = file

    def __getitem__(self, name: str) -> np.ndarray:
        file = self._home[name]
        try:
            return self._files[file].get_tensor(name)
        except (SafetensorError, TypeError, AttributeError) as error:  # the latter two: a dtype NumPy lacks
            raise ModelError(f"{file}: tensor {name!r} cannot be read: {error}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [folder / Path(name).name for name in names]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{index}: not a safetensors index (it needs a 'weight_map'); fetch it again") from None
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            count = f"{len(missing)} of {len(files)} shards are missing"
            raise ModelError(f"{folder}: {count}: {', '.join(missing)}; fetch them")
        return files
    for name in SINGLE_FILES:
        if (folder / name).is_file():
            return [folder / name]
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder}: has {', '.join(pickled)} but no safetensors; pickled weights can run code and are refused; "
            "save the model again with save_pretrained(..., safe_serialization=True)"
        )
    raise ModelError(f"{folder}: no weights; expected model.safetensors, or shards with model.safetensors.index.json")


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise ModelError(
            f"{file}: not a whole safetensors file ({file.stat().st_size:,} bytes): {error}; fetch it again"
        ) from None
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error}") from None
