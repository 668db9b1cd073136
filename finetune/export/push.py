"""Bundles on the Hugging Face hub: the files of the model alone, in one commit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.checkpoint import find_bundle
from finetune.errors import CheckpointError, first_line, listed, shown
from finetune.export.bundle import read_description, verify_bundle
from finetune.export.card import addressed, render_card
from finetune.export.layout import ARRAY_FILE, CARD, MODEL, NOVELTY, WEIGHTS
from finetune.hub import HubId, status_of
from finetune.untrusted import read_bytes

_CARD_BYTES = 1 << 20
_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
_BESIDE = re.compile(r"\.gitattributes|\.gitignore|LICENSE.*|NOTICE.*")  # files that may stand beside a bundle


@dataclass(frozen=True)
class PushedBundle:
    """Where a bundle is now.

    Attributes:
        repository: its hub id.
        url: of the commit, for a browser.
        commit: its hash: ``finetune.restore("repository@commit")`` is this very bundle for ever.
        files: number of files that the bundle has.
        size: of all of them, in bytes.
    """

    repository: str
    url: str
    commit: str
    files: int
    size: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def push_to_hub(
    directory: str | Path, repository: str, *, private: bool = False, revision: str | None = None
) -> PushedBundle:
    """Puts a model bundle on the Hugging Face hub, where :func:`finetune.restore` and ``finetune predict`` find it.

    The bundle is verified first. Only its own files are sent, never recipes, states or predictions of the run around
    it; an earlier bundle in the repository is replaced at once.

    Args:
        directory: a run's folder, or its ``model`` folder.
        repository: its hub id, ``owner/name``; made where there is none.
        private: make a repository that others do not see.
        revision: a branch, made where there is none; by default the main one.

    Raises:
        CheckpointError: no bundle, or a damaged one; no token; a repository of others, or of something else; or the hub
            cannot be reached. What was there before still is.
    """
    place = HubId(repository, revision)
    if not _ID.fullmatch(repository):
        raise CheckpointError(f"{shown(repository)}: not a hub id: give owner/name, such as me/flowers")
    folder = Path(directory).expanduser()
    bundle = find_bundle(folder)
    if bundle is None:
        raise CheckpointError(f"{folder}: no model bundle there; give what finetune run wrote")
    files = dict(_files_of(bundle))
    verify_bundle(bundle)
    if _token() is None:
        raise CheckpointError(f"{place}: pushing needs a token: log in (hf auth login), or set HF_TOKEN")
    try:
        return _push(place, files, _card(bundle, place), private)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}; nothing was pushed") from None
    except Exception as error:  # of requests or httpx; versions of huggingface_hub share no base class
        raise CheckpointError(f"{place}: {_explain(error)}; nothing was pushed") from None


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _files_of(bundle: Path) -> Iterator[tuple[str, Path]]:
    """Path in the bundle -> the file, but for the card.

    Raises:
        CheckpointError: one is a link, which could be to anything.
    """
    weights = re.compile(rf"{WEIGHTS}/{ARRAY_FILE}")
    for path in [bundle / MODEL, bundle / NOVELTY, *sorted((bundle / WEIGHTS).rglob("*"))]:
        name = path.relative_to(bundle).as_posix()
        if path.is_symlink() or (bundle / WEIGHTS).is_symlink():
            raise CheckpointError(
                f"{path}: a link, which is not pushed: copy the bundle with what it links to (cp -RL)"
            )
        if path.is_file() and (name in (MODEL, NOVELTY) or weights.fullmatch(name)):
            yield name, path


def _card(bundle: Path, place: HubId) -> bytes:
    """The bundle's card, with the place in its commands."""
    if (bundle / CARD).is_file():
        text = read_bytes(bundle / CARD, _CARD_BYTES, CheckpointError).decode(errors="replace")
    else:  # of an earlier version
        text = render_card(read_description(bundle))
    return addressed(text, str(place)).encode()


def _push(place: HubId, files: dict[str, Path], card: bytes, private: bool) -> PushedBundle:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, (repository, revision) = HfApi(), place
    api.create_repo(repository, private=private or None, exist_ok=True)
    if revision is not None:
        api.create_branch(repository, branch=revision, exist_ok=True)
    info = api.model_info(repository, revision=revision)
    there = [file.rfilename for file in info.siblings or ()]
    if private and not info.private:
        raise CheckpointError("is there already, and everyone sees it: leave out --private, or give another name")
    foreign = [name for name in there if not _is_ours(name) and not _BESIDE.fullmatch(name)]
    if foreign and MODEL not in there:
        raise CheckpointError(f"holds something that is no bundle ({listed(foreign, 3)}): give another name")
    operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
    operations.append(CommitOperationAdd(CARD, card))
    operations += [CommitOperationDelete(name) for name in there if _is_ours(name) and name not in (*files, CARD)]
    message = "Model bundle by flax-finetune"
    done = api.create_commit(repository, operations, commit_message=message, revision=revision, parent_commit=info.sha)
    size = len(card) + sum(path.stat().st_size for path in files.values())
    return PushedBundle(repository, done.commit_url, done.oid, len(files) + 1, size)


def _is_ours(name: str) -> bool:
    """Whether a file of a repository is a bundle's."""
    return name in (MODEL, NOVELTY, CARD) or name.startswith(f"{WEIGHTS}/")


def _explain(error: Exception) -> str:
    """Why the hub did not take it, and what to do."""
    from huggingface_hub import constants

    status = status_of(error)
    if status == 401:
        return "the hub does not accept the token: log in again (hf auth login), or set HF_TOKEN to a valid one"
    if status == 403:
        return (
            "this account may not write there: it belongs to another, or the token may only read; give a repository of "
            "your own and a token that may write (hf auth login)"
        )
    if status == 412:
        return "somebody else changed it meanwhile: look at it, then push again"
    if status is not None:
        return f"the hub answered {status}: {first_line(error)}"
    if constants.HF_HUB_OFFLINE:
        return "offline mode is on: unset HF_HUB_OFFLINE to push"
    if isinstance(error, ValueError):  # the hub's word on the card's front matter
        return f"the hub refuses it: {' '.join(str(error).split())[:300]}"
    return f"the hub cannot be reached: {first_line(error)}; check the network"
