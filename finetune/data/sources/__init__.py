"""Where labeled images come from: a reader for each type of source, all with the same result."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.labeled_images import EncodedImages, LabeledImages
from finetune.data.sources.arrays import read_digits, read_npz
from finetune.data.sources.folders import read_folders
from finetune.data.sources.parquet import parquet_files
from finetune.errors import DataError, nearest
from finetune.recipe import DataConfig

MEMORY = "memory"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read_source(config: DataConfig, memory: Any = None, *, verify: bool = False) -> dict[str, LabeledImages]:
    """The splits that the source has: ``train``, and ``validation`` and ``test`` if there are any.

    Args:
        memory: a ``datasets.Dataset``, or a mapping from split names to datasets, for ``source: memory``.
        verify: read Parquet files again, whatever is cached of them.

    Raises:
        DataError: the source is missing, empty or cannot be read, the roles of columns cannot be inferred, or an option
            of the recipe has no effect on this source.
    """
    splits = _read(config, memory, verify)
    for name in ("validation", "test"):
        if name in splits and getattr(config, name) and not config.has_default(name):
            _refuse(config, f"the source has a {name} split of its own", name)
    images = splits["train"].images
    if isinstance(images, np.ndarray) or (isinstance(images, EncodedImages) and images.fingerprint is None):
        _refuse(config, "the images are in memory already", "cache_shortest_edge")
    return splits


def _read(config: DataConfig, memory: Any, verify: bool) -> dict[str, LabeledImages]:
    if config.source == MEMORY:
        return _tables().read_memory(memory, config)
    if config.source == "digits":
        return _digits()
    path = _path(config.source)
    if path.exists():
        _refuse(config, f"{path} is no hub dataset", "subset", "revision")
    if path.is_file():
        return _read_file(path, config, verify)
    if path.is_dir():
        return _read_folder(path, config, verify)
    if _HUB_ID.fullmatch(config.source) and not path.parent.is_dir():
        return _tables().read_hub(config)
    if path.exists():
        raise DataError(f"data.source: {path}: neither a file nor a folder, but a pipe, a socket or a device")
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    raise DataError(
        f"data.source: {config.source}: no such file or folder{where}{nearest(path.name, ['digits'])}; "
        "other sources: digits, or the hub id of a dataset (owner/name)"
    )


def is_path(source: str) -> bool:
    """Whether a source is an existing file or folder."""
    return source not in ("digits", MEMORY) and _path(source).exists()


def _path(source: str) -> Path:
    """With ``~`` as the home folder, where there is such a user."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        return Path(source)


def _digits() -> dict[str, LabeledImages]:
    read = read_digits()
    if Path("digits").is_dir():
        note = "data.source: digits: scikit-learn's; the folder of that name here is data.source: ./digits"
        read["train"] = read["train"].with_notes([note])
    return read


def _read_file(path: Path, config: DataConfig, verify: bool) -> dict[str, LabeledImages]:
    match path.suffix.lower():
        case ".csv" | ".tsv":
            return _tables().read_csv(path, config)
        case ".parquet":
            return _tables().read_parquet(path, [path], config, verify=verify)
        case ".npz":
            _refuse(config, f"{path} holds arrays", "columns")
            return read_npz(path)
    raise DataError(f"data.source: {path}: unsupported type of file; supported: .csv, .tsv, .parquet, .npz")


def _read_folder(path: Path, config: DataConfig, verify: bool) -> dict[str, LabeledImages]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _tables().read_saved(path, config)
    if files := parquet_files(path):
        return _tables().read_parquet(path, files, config, verify=verify)
    _refuse(config, f"{path} is a folder of images", "columns")
    return read_folders(path)


def _refuse(config: DataConfig, reason: str, *options: str) -> None:
    """Raises DataError where the recipe asks for an option that has no effect on its source."""
    for name in options:
        if config.asks_for(name):
            raise DataError(
                f"data.{name}: has no effect, as {reason}: leave it out (~data.{name}); "
                f"received {getattr(config, name)!r}"
            )


def _tables() -> Any:
    """The readers that need ``datasets``, which takes a second to import."""
    from finetune.data.sources import tables

    return tables
