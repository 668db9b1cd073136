"""Folders at URLs, by fsspec: ``s3://``, ``gs://``, ``https://``, ``file://``, ``memory://`` and what else it knows.

A folder that :func:`push_to_url` wrote looks like this::

    manifest.json    path, size and SHA-256 of every file, under a digest of its own; written last
    <digest>/        the folder itself

So a reader sees the folder before or the folder after, never one between them; and a copy that was cut off is no copy.
A folder that was copied there by other means has no manifest, and is read as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from finetune.errors import CheckpointError, first_line
from finetune.files import cache_folder, hash_bytes, hash_json, require_space, written_atomically
from finetune.hub import fetch_bundle, read_hub_id
from finetune.untrusted import parse_json

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_MANIFEST, _FORMAT = "manifest.json", 1
_IDENTITY = ("model.json", "model/model.json", "run.json")  # name what a folder without a manifest holds
_MOST_FILES = 100_000
_MOST_DESCRIPTION = 64 << 20  # bytes of a manifest or of model.json
_BLOCK = 1 << 20
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "http": "aiohttp"}


@dataclass(frozen=True)
class _Listing:
    """The files of a folder at a URL.

    Attributes:
        base: where they are.
        files: path -> size, and SHA-256 where it is known.
        digest: of all of it.
    """

    base: str
    files: Mapping[str, tuple[int, str | None]]
    digest: str


def is_url(text: object) -> bool:
    return isinstance(text, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def local_folder(place: str | Path, *, skip: Collection[str] = ()) -> Path:
    """The folder at a path, or a copy of the one at a URL, see :func:`fetch`, or of the bundle at a hub id."""
    if is_url(place):
        return fetch(str(place), skip=skip)
    hub_id = read_hub_id(str(place))
    return Path(place).expanduser() if hub_id is None else fetch_bundle(hub_id)


def fetch(url: str, *, skip: Collection[str] = ()) -> Path:
    """A copy, in the cache folder, of the folder at a URL. It is made once for all that the folder is the same.

    Args:
        skip: names at its top that are not needed, such as ``state``.

    Returns:
        The copy; every file is of the size, and where there is a manifest of the digest, that it should be.

    Raises:
        CheckpointError: there is no such folder, it cannot be read, or it is not whole.
    """
    with _reading(url):
        files, root = _open(url)
        for attempt in (1, 2):
            listing = _list(files, root, url, skip)
            copy = cache_folder() / "remote" / listing.digest
            if copy.is_dir():
                return copy
            try:
                _download(files, listing, copy, url)
            except FileNotFoundError:
                if attempt == 2:
                    raise
                continue  # replaced by a newer one meanwhile
            return copy
    raise AssertionError


def push_to_url(folder: str | Path, url: str) -> str:
    """Copies a folder to a URL, where it replaces an earlier one at once and only when all of it is there.

    Returns:
        Its digest.

    Raises:
        CheckpointError: it has links or devices, or it cannot be written there; what was there before still is.
    """
    folder = Path(folder)
    manifest: dict[str, Any] = {"format": _FORMAT, "files": {}}
    for path in _files_in(folder):
        manifest["files"][path] = {"size": (folder / path).stat().st_size, "sha256": _hash_file(folder / path)}
    digest = hash_json(manifest)
    text = json.dumps({**manifest, "sha256": digest}, indent=1) + "\n"
    try:
        files, root = _open(url)
        there = _pushed(files, root)
        for path, about in manifest["files"].items():
            target = f"{root}/{digest}/{path}"
            files.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
            earlier = there.get(about["sha256"])
            if earlier == target:
                continue
            if earlier is not None:
                files.cp_file(earlier, target)  # within the place, where object stores do it themselves
            else:
                files.put_file(str(folder / path), target)
        _replace(files, f"{root}/{_MANIFEST}", text)
        for old in files.ls(root, detail=False):
            if re.fullmatch(r"[0-9a-f]{64}", name := PurePosixPath(old).name) and name != digest:
                files.rm(old, recursive=True)
    except CheckpointError:
        raise
    except Exception as error:  # each file system raises its own
        raise CheckpointError(f"{url}: cannot be written: {first_line(error)}") from None
    return digest


def is_there(url: str) -> bool:
    """Whether a URL has what :func:`push_to_url` writes.

    Raises:
        CheckpointError: it cannot be looked at.
    """
    with _reading(url):
        files, root = _open(url)
        return bool(files.exists(f"{root}/{_MANIFEST}"))


def _pushed(files: AbstractFileSystem, root: str) -> dict[str, str]:
    """SHA-256 -> path of the files that were pushed before."""
    try:
        manifest = parse_json(_read(files, f"{root}/{_MANIFEST}"))
        digest = manifest.pop("sha256")
        if digest != hash_json(manifest):
            return {}
        return {about["sha256"]: f"{root}/{digest}/{path}" for path, about in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system, and the path of the folder in it."""
    import fsspec

    protocol = url.partition("://")[0]
    if "::" in url:
        raise CheckpointError(f"{url}: one place, without '::'")
    try:
        files, root = fsspec.url_to_fs(url, skip_instance_cache=True)
    except ImportError as error:
        package = _PACKAGES.get(protocol.removesuffix("s") if protocol == "https" else protocol)
        advice = f"install {package}" if package else first_line(error)
        raise CheckpointError(f"{url}: {protocol}:// needs one more package: {advice}") from None
    except ValueError as error:
        raise CheckpointError(f"{url}: {first_line(error)}") from None
    return files, root.rstrip("/")


def _list(files: AbstractFileSystem, root: str, url: str, skip: Collection[str]) -> _Listing:
    try:
        text = _read(files, f"{root}/{_MANIFEST}")
    except FileNotFoundError:
        return _list_plain(files, root, url, skip)
    try:
        manifest = parse_json(text)
        digest = manifest.pop("sha256", None)
        if digest != hash_json(manifest):
            raise ValueError("not what was written")
        if manifest["format"] != _FORMAT:
            raise ValueError(f"format {manifest['format']}, made by a newer version; this one reads {_FORMAT}: upgrade")
        listed = {path: (int(about["size"]), str(about["sha256"])) for path, about in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{url}: its {_MANIFEST} cannot be used: {first_line(error)}") from None
    kept = _without(listed, skip)
    _check_paths(kept, url)
    identity = digest if len(kept) == len(listed) else hash_json({"of": digest, "files": sorted(kept)})
    return _Listing(f"{root}/{digest}", kept, identity)


def _list_plain(files: AbstractFileSystem, root: str, url: str, skip: Collection[str]) -> _Listing:
    """A folder without a manifest; what describes it tells whether it is another by now."""
    found = files.find(root, detail=True)
    listed = {name.removeprefix(root).lstrip("/"): (int(about["size"]), None) for name, about in found.items()}
    kept = _without(listed, skip)
    identity = [name for name in _IDENTITY if name in kept]
    if not identity:
        raise CheckpointError(f"{url}: no run and no model bundle there; give the URL of what finetune run wrote")
    _check_paths(kept, url)
    texts = {name: hash_bytes(_read(files, f"{root}/{name}")) for name in identity}
    sizes = {name: size for name, (size, _) in kept.items()}
    return _Listing(root, kept, hash_json({"described": texts, "sizes": sizes}))


def _without(listed: Mapping[str, Any], skip: Collection[str]) -> dict[str, Any]:
    return {path: about for path, about in listed.items() if path.split("/")[0] not in skip}


def _check_paths(paths: Collection[str], url: str) -> None:
    if len(paths) > _MOST_FILES:
        raise CheckpointError(f"{url}: {len(paths):,} files, where {_MOST_FILES:,} are the most")
    for path in paths:
        parts = path.split("/")
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
            raise CheckpointError(f"{url}: names a file outside of its folder: {path!r}")


def _download(files: AbstractFileSystem, listing: _Listing, copy: Path, url: str) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    require_space(copy, sum(size for size, _ in listing.files.values()))
    with tempfile.TemporaryDirectory(dir=copy.parent, prefix="unfinished-") as fresh:
        for path, (size, sha256) in listing.files.items():
            target = Path(fresh) / "copy" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            copied = _copy_file(files, f"{listing.base}/{path}", target, size)
            if sha256 is not None and copied != sha256:
                raise CheckpointError(f"{url}: {path} is not what was written: the copy there is damaged")
        try:
            (Path(fresh) / "copy").rename(copy)
        except OSError:  # another process was faster
            if not copy.is_dir():
                raise


def _copy_file(files: AbstractFileSystem, source: str, target: Path, size: int) -> str:
    """The SHA-256 of what was copied, which is of that size."""
    digest, copied = hashlib.sha256(), 0
    with files.open(source, "rb") as remote, target.open("wb") as local:
        while block := remote.read(min(_BLOCK, size - copied + 1)):
            copied += len(block)
            if copied > size:
                break
            digest.update(block)
            local.write(block)
    if copied != size:
        raise CheckpointError(f"{source}: is not of {size:,} bytes, as it should be: the copy there is not whole")
    return digest.hexdigest()


def _read(files: AbstractFileSystem, path: str) -> bytes:
    with files.open(path, "rb") as file:
        data = bytes(file.read(_MOST_DESCRIPTION + 1))
    if len(data) > _MOST_DESCRIPTION:
        raise CheckpointError(f"{path}: more than {_MOST_DESCRIPTION:,} bytes")
    return data


def _replace(files: AbstractFileSystem, path: str, text: str) -> None:
    """Writes a file at once: object stores do so by themselves."""
    from fsspec.implementations.local import LocalFileSystem

    if isinstance(files, LocalFileSystem):
        with written_atomically(Path(path)) as beside:
            beside.write_text(text, encoding="utf-8")
    else:
        files.pipe_file(path, text.encode())


def _files_in(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path}: neither a file nor a folder, and not copied; move it away")
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _reading(url: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{url}: no such folder, or not all of it is there: {first_line(error)}") from None
    except Exception as error:  # each file system raises its own
        raise CheckpointError(f"{url}: cannot be read: {first_line(error)}") from None
