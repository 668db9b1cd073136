"""How a run's folder comes into being and replaces an earlier one: a kill at any moment leaves the one or the other.

In the folder, ``.starting`` holds the files of a new run until all are whole; they are moved up, ``run.json`` last.
Beside it, ``.NAME.new`` is a folder to be, and ``.NAME.old`` the earlier run until the new one is in its place. All of
it is for the process that has the folder's lock, and :func:`mend` puts in order what a killed one left.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from finetune.errors import CheckpointError, listed
from finetune.files import restore_replaced, sync_folder, written_atomically
from finetune.folder.contents import IMAGES, MODEL, RECIPE, RUN, SKIPPED, STARTING, Contents
from finetune.folder.lock import is_fixed, locate


def create(directory: Path, files: Mapping[str, str | bytes]) -> None:
    """Puts the files of a new run into a folder that is missing or empty.

    Args:
        files: contents by name; the last one makes it a run.
    """
    _remove_half_start(directory)
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    staging = directory / STARTING
    try:
        staging.mkdir()
        _write(staging, files)
        for name in files:
            (staging / name).rename(directory / name)
        sync_folder(directory)
        staging.rmdir()
    except BaseException:
        _remove_half_start(directory)
        if made:
            with suppress(OSError):  # the start had come to its end: the run is whole
                directory.rmdir()
        raise
    sync_folder(directory.parent)


def replace(directory: Path, files: Mapping[str, str | bytes], say: Callable[[str], None]) -> None:
    """Puts a new run of these files in the place of an earlier one, which is removed once that is done.

    Raises:
        CheckpointError: something is in the way; the earlier run is as it was.
    """
    place = locate(directory)
    fresh, old = _fresh(place), _old(place)
    if os.path.lexists(old) or os.path.lexists(fresh):
        raise CheckpointError(f"{old if os.path.lexists(old) else fresh}: is in the way; move it, then try again")
    try:
        fresh.mkdir(mode=stat.S_IMODE(place.stat().st_mode))
        _write(fresh, files)
    except BaseException:
        Contents(fresh).remove_written()
        raise
    place.rename(old)
    try:
        fresh.rename(place)
    except BaseException:
        old.rename(place)
        Contents(fresh).remove_written()
        raise
    sync_folder(place.parent)
    if left := Contents(old).remove_written():
        say(f"{old}: of the earlier run, files that no run wrote are left here: {listed(left)}")


def mend(directory: Path, say: Callable[[str], None]) -> None:
    """Puts in order what a killed process left beside and in a folder."""
    place = locate(directory)
    old = _old(place)
    Contents(_fresh(place)).remove_written()
    _remove_half_start(place)
    if (old / RUN).is_file() and not (place.exists() and any(place.iterdir())):
        old.rename(place)
        say(f"{directory}: --overwrite was interrupted: the earlier run is back")
    elif (place / RUN).is_file():
        Contents(old).remove_written()
    if place.is_dir():
        restore_replaced(place / MODEL)


def why_fixed(directory: Path) -> str | None:
    """Why a folder cannot be moved aside; None where it can."""
    place = locate(directory)
    if os.path.ismount(place):
        return "a mount point"
    if is_fixed(place):
        return f"in {place.parent}, which cannot be written to"
    here = Path.cwd()
    return (
        "the current folder, or around it" if any(folder.samefile(place) for folder in (here, *here.parents)) else None
    )


def _write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
        with written_atomically(folder / name) as beside:
            beside.write_bytes(data)


def _remove_half_start(directory: Path) -> None:
    """Removes the files of a start that did not come to its last one.

    Once ``run.json`` is written in the staging folder, all are: those that are no longer there were moved up from it.
    """
    staging = directory / STARTING
    if staging.is_symlink() or not staging.is_dir():
        return
    if (staging / RUN).is_file() and not (directory / RUN).exists():
        for name in (RECIPE, SKIPPED, IMAGES):
            if not (staging / name).exists():
                (directory / name).unlink(missing_ok=True)
    Contents(staging).remove_written()


def _fresh(place: Path) -> Path:
    return place.with_name(f".{place.name}.new")


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")
