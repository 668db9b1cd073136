"""Where a checkpoint is: bundled, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from finetune import bundled
from finetune.errors import ModelError

# Weights are read from safetensors alone; nothing that could hold code is fetched.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint.

    Args:
        source: ``builtin:NAME``, a folder, or a hub id ``owner/name`` (fetched once and cached by huggingface_hub).
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelError: nothing is there, or the hub does not give it.
    """
    text = str(source)
    if text.startswith("builtin:"):
        return bundled.checkpoint(text.removeprefix("builtin:"))
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"{path}: a file; give the folder that holds config.json and the safetensors")
    is_id = text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith("/")
    if not is_id:
        raise ModelError(f"{text}: no such folder, and not a hub id (owner/name) or builtin:NAME either")
    return _from_hub(text, revision)


def _from_hub(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    at = f"{repository}@{revision}" if revision else repository
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=_WANTED))
        if not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"{at}: has no safetensors, and pickled weights, which can run code, are not read; look among the "
                "repository's pull requests for a converted copy and name it as revision: refs/pr/NUMBER"
            )
        return folder
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{at}: no folder of that name here, not in the local cache, and the hub cannot be reached; "
            "check the name and the network, or download the checkpoint and give its folder"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(f"{at}: the hub has no such repository, or it needs a login (hf auth login)") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f"{at}: cannot be fetched from the hub: {str(error).splitlines()[0]}") from None
