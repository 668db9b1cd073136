"""Ids of the Hugging Face hub, ``owner/name[@revision]``, and why it did not do what was asked."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from finetune.errors import CheckpointError, first_line

_SECONDS = 10.0  # for the hub to answer
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
    from huggingface_hub import snapshot_download

    repository, revision = hub_id
    try:
        files = _files_of(hub_id)
        if files is not None and "model.json" not in files:
            raise CheckpointError(
                "no model bundle: the repository has no model.json; give one that finetune push wrote"
            )
        local = files is None
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_BUNDLE, local_files_only=local))
    except CheckpointError as error:
        raise CheckpointError(f"{hub_id}: {error}") from None
    except Exception as error:  # of requests, httpx or the disk; versions of huggingface_hub share no base class
        raise CheckpointError(f"{hub_id}: {explain(error)}") from None


def _files_of(hub_id: HubId) -> set[str] | None:
    """Names of a repository's files; None where the hub does not answer, which is asked once: a download would try for
    half a minute."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(hub_id.repository, revision=hub_id.revision, timeout=_SECONDS)
    except Exception as error:  # see fetch_bundle
        if status_of(error) is None:
            return None
        raise
    return {file.rfilename for file in info.siblings or ()}


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
            return (
                "not completely in the local cache, and offline mode is on; unset HF_HUB_OFFLINE to download it; "
                "there is no folder of that name"
            )
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
