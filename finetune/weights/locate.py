"""Locates a checkpoint: bundled, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune import resources
from finetune.errors import ModelError, shown
from finetune.hub import explain
from finetune.untrusted import read_json
from finetune.weights.license import ungated_copy

# Configuration, image processor, tokenizer and model card, from a repository's top folder only. Weights are downloaded
# by name, and only safetensors, so nothing that could hold code is downloaded.
_SETTINGS = ["*.json", "*.txt", "*.model", "README.md"]
_SUBFOLDERS = ["*/*"]
_CONFIGURATIONS = ("config.json", "open_clip_config.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_INDEX = "model.safetensors.index.json"


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint.

    Args:
        source: ``builtin:NAME``, a folder, or a hub id ``owner/name`` or ``owner/name@REVISION``, downloaded once and
            cached by huggingface_hub. A folder takes precedence over a hub id of the same name.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelError: there is no such checkpoint, or it cannot be downloaded.
    """
    text = str(source)
    path = Path(os.path.expanduser(source))  # a Path raises where there is no such user
    if revision is not None and (text.startswith("builtin:") or os.path.exists(path)):
        raise ModelError(f"{text}: revision {revision!r} applies only to hub ids; this is on disk, so leave it out")
    if text.startswith("builtin:"):
        return resources.checkpoint(text.removeprefix("builtin:"))
    if os.path.isdir(path):  # a Path raises where the name is too long
        return path
    if os.path.exists(path):
        raise ModelError(f"{shown(path)}: is a file; give the folder that holds config.json and the safetensors")
    repository, at, named = text.partition("@")
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")) or repository.endswith("/"):
        raise ModelError(f"{shown(text)}: no such folder, and neither a hub id (owner/name) nor builtin:NAME")
    if at and not named:
        raise ModelError(f"{text}: no revision after @; add a branch, tag or commit, or leave out the @")
    if named and revision and named != revision:
        raise ModelError(f"{text}: its revision differs from the argument revision={revision!r}; give only one")
    return _from_hub(repository, named or revision)


def _from_hub(repository: str, revision: str | None) -> Path:
    at = f"{repository}@{revision}" if revision else repository
    try:
        return _download(repository, revision)
    except ModelError as error:
        raise ModelError(f"{at}: {error}") from None
    except Exception as error:  # of requests, httpx or the disk; versions of huggingface_hub share no base class
        raise ModelError(f"{at}: {explain(error, ungated_copy(repository))}") from None


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    settings = snapshot_download(repository, revision=revision, allow_patterns=_SETTINGS, ignore_patterns=_SUBFOLDERS)
    folder = Path(settings)
    if "model_type" in _read_object(folder / "config.json") and not _any(folder, _PROCESSORS):
        # Another program may have cached a transformers model without its image processor; falling back to defaults
        # would then change the model's input. Raises if the hub cannot be reached.
        _ensure_cached(repository, _PROCESSORS[0], folder.name)
    for name in _weight_files(repository, folder):
        if not _ensure_cached(repository, name, folder.name):
            raise ModelError(
                f"has no safetensors ({name}), and pickled weights, which can run code, are not read; look for a "
                "converted copy among the repository's pull requests and give it as revision: refs/pr/NUMBER; or "
                "convert it: load it in transformers, save_pretrained(FOLDER, safe_serialization=True), and give "
                "that folder"
            )
    return folder


def _weight_files(repository: str, folder: Path) -> list[str]:
    """The names of the weight files that belong to a repository's configuration."""
    if not _any(folder, _CONFIGURATIONS) and not _ensure_cached(repository, "config.json", folder.name):
        raise ModelError(f"not a checkpoint: no {' or '.join(_CONFIGURATIONS)} in its top folder")
    if not (folder / "config.json").is_file():
        return ["open_clip_model.safetensors"]
    if not (folder / _INDEX).is_file():
        return ["model.safetensors"]
    shards = _read_object(folder / _INDEX).get("weight_map")
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    foreign = [name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name)]
    if foreign or not names:
        received = f"it names {foreign[0]!r}" if foreign else "it names no files"
        raise ModelError(f"{_INDEX}: needs a weight_map of safetensors in its folder; {received}; use another revision")
    if _ensure_cached(repository, "model.safetensors", folder.name):  # transformers reads it rather than the index
        return ["model.safetensors"]
    return names


def _ensure_cached(repository: str, name: str, commit: str) -> bool:
    """Downloads a file into the cache unless it is there; False where the repository has no such file, which is cached
    as well.

    Raises:
        LocalEntryNotFoundError: the cache does not know, and the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cached = try_to_load_from_cache(repository, name, revision=commit)
    if cached is not None:
        return isinstance(cached, str)
    try:
        hf_hub_download(repository, name, revision=commit)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return False
    return True


def _any(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one; what is wrong with the file is reported when it is loaded."""
    try:
        return read_json(file)
    except ModelError:
        return {}
