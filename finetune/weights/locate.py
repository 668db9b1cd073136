"""Where a checkpoint is: bundled, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune import resources
from finetune.errors import ModelError, first_line

# Of a repository's top folder: configuration, image processor and tokenizer. The weights are named one by one, and
# only safetensors, so nothing that could hold code is fetched.
_SETTINGS = ["*.json", "*.txt", "*.model"]
_SUBFOLDERS = ["*/*"]
_CONFIGURATIONS = ("config.json", "open_clip_config.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_INDEX = "model.safetensors.index.json"


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint.

    Args:
        source: ``builtin:NAME``, a folder, or a hub id ``owner/name`` or ``owner/name@REVISION`` (fetched once and
            cached by huggingface_hub). A folder wins over a hub id of that name.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelError: nothing is there, or the hub does not give it.
    """
    text = str(source)
    path = Path(source).expanduser()
    if revision is not None and (text.startswith("builtin:") or path.exists()):
        raise ModelError(f"{text}: revision {revision!r} is for hub ids; this is on disk: leave the revision out")
    if text.startswith("builtin:"):
        return resources.checkpoint(text.removeprefix("builtin:"))
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"{path}: a file; give the folder that holds config.json and the safetensors")
    repository, at, named = text.partition("@")
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")) or repository.endswith("/"):
        raise ModelError(f"{text}: no such folder, and not a hub id (owner/name) or builtin:NAME either")
    if at and not named:
        raise ModelError(f"{text}: no revision after @; give a branch, tag or commit there, or leave out the @")
    if named and revision and named != revision:
        raise ModelError(f"{text}: names another revision than the argument revision={revision!r}; give one of them")
    return _from_hub(repository, named or revision)


def _from_hub(repository: str, revision: str | None) -> Path:
    at = f"{repository}@{revision}" if revision else repository
    try:
        return _fetch(repository, revision)
    except ModelError as error:
        raise ModelError(f"{at}: {error}") from None
    except Exception as error:  # from requests, httpx or the disk; versions of huggingface_hub share no class
        raise ModelError(f"{at}: {_explain(error)}") from None


def _fetch(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    settings = snapshot_download(repository, revision=revision, allow_patterns=_SETTINGS, ignore_patterns=_SUBFOLDERS)
    folder = Path(settings)
    if "model_type" in _read_object(folder / "config.json") and not _any(folder, _PROCESSORS):
        # Another program may have cached a transformers model without its image processor, and defaults in place of
        # that would change the model's input; where the hub cannot be asked this raises.
        _has(repository, _PROCESSORS[0], folder.name)
    for name in _weights(repository, folder):
        if not _has(repository, name, folder.name):
            raise ModelError(
                f"has no safetensors ({name}), and pickled weights, which can run code, are not read; look among the "
                "repository's pull requests for a converted copy and name it as revision: refs/pr/NUMBER; or convert "
                "it: load it in transformers, save_pretrained(FOLDER, safe_serialization=True), and give that folder"
            )
    return folder


def _weights(repository: str, folder: Path) -> list[str]:
    """The files of the one set of weights that belongs to a repository's configuration."""
    if not _any(folder, _CONFIGURATIONS) and not _has(repository, "config.json", folder.name):
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
        raise ModelError(f"{_INDEX}: needs a weight_map of safetensors beside it; {received}; use another revision")
    return names


def _has(repository: str, name: str, commit: str) -> bool:
    """Whether a repository has a file, which is then in the cache. That it has none is cached too.

    Raises:
        LocalEntryNotFoundError: neither is in the cache, and the hub cannot be asked.
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
    """A JSON object, or an empty one: what is wrong with a file is for its reader to say."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _explain(error: Exception) -> str:
    """What was wrong with the hub, and what to do."""
    from huggingface_hub import constants, errors

    answer = getattr(error.__cause__ or error, "response", None)
    status = None if answer is None else answer.status_code
    if isinstance(error, errors.RepositoryNotFoundError) and not isinstance(error, errors.GatedRepoError):
        return "the hub has no such repository, or it needs a login (hf auth login); and no folder here has that name"
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        return "gated: accept its terms on its page on the hub, then log in with the same account (hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the hub has this repository, but no such branch, tag or commit of it; check the revision"
    if isinstance(error, errors.LocalEntryNotFoundError) and status is None:
        if constants.HF_HUB_OFFLINE:
            return "not, or not wholly, in the local cache, and offline mode is on; unset HF_HUB_OFFLINE to fetch it"
        return (
            "no folder of that name here, not, or not wholly, in the local cache, and the hub cannot be reached; "
            "check the name and the network, or download the checkpoint and give its folder"
        )
    if isinstance(error, errors.HFValidationError):
        return f"not a hub id (owner/name), and no such folder: {first_line(error)}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        return f"cannot be kept in {constants.HF_HUB_CACHE}: {first_line(error)}; make room, or set HF_HOME elsewhere"
    said = f"the hub answered {status}" if status else first_line(error)
    return f"cannot be fetched from the hub: {said}; try again, what has arrived whole is kept"
