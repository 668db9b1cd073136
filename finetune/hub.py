"""Ids of the Hugging Face hub, ``owner/name[@revision]``, and why it did not do what was asked."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from finetune.errors import CheckpointError, first_line

_BUNDLE = ["model.json", "novelty.safetensors", "README.md", "weights/*"]  # of a repository, all else is left there
_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)


class HubId(NamedTuple):
    """A repository, and a branch, tag or commit of it; None is its main branch."""

    repository: str
    revision: str | None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def read_hub_id(text: str) -> HubId | None:
    """What a text names on the hub; None where it names something on this disk, or cannot be an id.

    A name inside a folder that is there is a path, even where nothing has that name yet.
    """
    match = _ID.fullmatch(text)
    if match is None or os.path.exists(text) or os.path.isdir(text.partition("/")[0]):
        return None
    return HubId(match["repository"], match["revision"])


def fetch_bundle(hub_id: HubId) -> Path:
    """A copy, in the hub's cache, of the model bundle in a repository. It is fetched once, and usable offline then.

    Raises:
        CheckpointError: there is none, or it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, revision = hub_id
    try:
        described = hf_hub_download(repository, "model.json", revision=revision)
        commit = Path(described).parent.name  # so that all is of one, even where a newer one is pushed meanwhile
        return Path(snapshot_download(repository, revision=commit, allow_patterns=_BUNDLE))
    except Exception as error:  # of requests, httpx or the disk; versions of huggingface_hub share no base class
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise CheckpointError(
                f"{hub_id}: no model bundle: the repository has no model.json; give one that finetune push wrote"
            ) from None
        raise CheckpointError(f"{hub_id}: no such folder, and as a hub id: {explain(error)}") from None


def explain(error: Exception, ungated_copy: str | None = None) -> str:
    """Why the hub did not deliver, and what to do.

    Args:
        error: of huggingface_hub, the network or the disk.
        ungated_copy: a repository with the same weights that asks for no terms to be accepted.
    """
    from huggingface_hub import constants, errors

    status = status_of(error)
    if isinstance(error, errors.RepositoryNotFoundError) and not isinstance(error, errors.GatedRepoError):
        return "the hub has no such repository, or it needs a login (hf auth login); there is no folder of that name"
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        other = f"; {ungated_copy} has the same weights without that" if ungated_copy else ""
        return (
            f"gated: accept the terms on its page on the hub, then log in with the same account (hf auth login){other}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "the hub has this repository, but no such branch, tag or commit of it; check the revision"
    if isinstance(error, errors.LocalEntryNotFoundError) and status is None:
        if constants.HF_HUB_OFFLINE:
            return "not completely in the local cache, and offline mode is on; unset HF_HUB_OFFLINE to download it"
        return (
            "there is no folder of that name, it is not completely in the local cache, and the hub cannot be reached; "
            "check the name and the network, or download the checkpoint and give its folder"
        )
    if isinstance(error, errors.HFValidationError):
        return f"not a hub id (owner/name), and no such folder: {first_line(error)}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        return f"cannot be saved in {constants.HF_HUB_CACHE}: {first_line(error)}; free disk space, or change HF_HOME"
    cause = f"the hub answered {status}" if status else first_line(error)
    return f"cannot be downloaded from the hub: {cause}; try again, complete files are kept"


def status_of(error: Exception) -> int | None:
    """The HTTP status that the hub answered with; None where it did not answer."""
    response = getattr(error.__cause__ or error, "response", None)
    return None if response is None else int(response.status_code)
