"""What a run writes in its folder, by name and kind. All else there is somebody's, and is never removed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import RecipeError
from finetune.recipe.source import RecipeSource

RECIPE, RUN, SKIPPED = "recipe.yaml", "run.json", "skipped_images.txt"
SUMMARY, METRICS, PREDICTIONS = "summary.json", "metrics.jsonl", "predictions.parquet"
START, REPORT = "start.safetensors", "report.html"
STATE, MODEL, FIGURES = "state", "model", "figures"
STARTING = ".starting"  # a folder for the files of a run that is about to start

_CHARTS = {"confusion", "curves", "mistakes", "reliability", "weight_change"}
_UNFINISHED = r"(\.\d+\.new)?"
_FILES = (RECIPE, RUN, SKIPPED, SUMMARY, METRICS, PREDICTIONS, START, REPORT)
_FILE = re.compile(rf"({'|'.join(map(re.escape, _FILES))}){_UNFINISHED}|\.lock")
_STARTING_FILE = re.compile(rf"{re.escape(STARTING)}/({'|'.join(map(re.escape, _FILES))}){_UNFINISHED}")
_PICTURE = re.compile(rf"{FIGURES}/(?P<name>.+)\.png{_UNFINISHED}")
_LEFT_OVER = re.compile(rf".+\.\d+\.new|{MODEL}\.old")
_TEMPORARY = r"(\.orbax-checkpoint-tmp(-\d+)?)?"
_BUNDLE = rf"{MODEL}(\.old|{_UNFINISHED})"
_WEIGHTS = rf"{_BUNDLE}/weights{_TEMPORARY}"
_STEP = rf"{STATE}/\d+{_TEMPORARY}"
_ITEM = rf"{_STEP}/\w+{_TEMPORARY}"
_ARRAYS = r"(array_metadatas|d|ocdbt\.process_\w+(/d)?)"  # folders of Orbax and TensorStore
_ARRAY_FILE = (
    r"(_METADATA|_CHECKPOINT_METADATA|_sharding|_strings\.json|commit_success\.txt|metadata|metrics|data\.json"
    r"|array_metadatas/process_\d+|(ocdbt\.process_\w+/)?(manifest\.ocdbt|d/[0-9a-f]{32}))(\.__lock)?"
)
_FOLDER = re.compile(
    rf"{re.escape(STARTING)}|{FIGURES}|{_BUNDLE}|{_WEIGHTS}(/{_ARRAYS})?|{STATE}|{_STEP}|{_ITEM}(/{_ARRAYS})?"
)
_BUNDLE_FILE = re.compile(rf"{_BUNDLE}/(model\.json|novelty\.safetensors){_UNFINISHED}|{_WEIGHTS}/{_ARRAY_FILE}")
_STATE_FILE = re.compile(rf"{_STEP}/(_CHECKPOINT_METADATA|commit_success\.txt)|{_ITEM}/{_ARRAY_FILE}")


@dataclass(frozen=True)
class Entry:
    """Something in a run's folder.

    Attributes:
        name: the path in the folder, with slashes.
        kind: ``folder``, ``file``, ``link`` or ``other``.
    """

    name: str
    kind: str


def list_foreign(directory: Path) -> list[str]:
    """What no run wrote; of a folder that is foreign, the folder alone."""
    stages = _stages(directory)
    return [entry.name for entry in _walk(directory, stages) if not _is_written(entry, stages)]


def list_links(directory: Path) -> list[str]:
    """Links where a run writes: its own names, and anything inside its own folders."""
    stages = _stages(directory)
    links = [entry.name for entry in _walk(directory, stages) if entry.kind == "link"]
    return [name for name in links if "/" in name or _has_own_name(name, stages)]


def remove_written(directory: Path) -> list[str]:
    """Removes what a run wrote, and the folder if nothing else is in it.

    First goes what makes it a run, so that half of one is none; last the recipe, which names its pictures.

    Returns:
        What is left, as no run wrote it.
    """
    if directory.is_symlink() or not directory.is_dir():
        return []
    stages = _stages(directory)
    written = [entry for entry in _walk(directory, stages) if _is_written(entry, stages)]
    order = {RUN: 0, RECIPE: 2}
    for entry in sorted(written, key=lambda entry: (order.get(entry.name, 1), -entry.name.count("/"))):
        _remove(directory / entry.name, entry.kind)
    foreign = list_foreign(directory)
    if not foreign:
        _remove(directory, "folder")
    return foreign


def remove_unfinished(directory: Path) -> None:
    """Removes what a killed process was writing or had replaced; nobody else writes now."""
    stages = _stages(directory)
    written = [entry for entry in _walk(directory, stages) if _is_written(entry, stages)]
    for entry in reversed(written):
        if any(_LEFT_OVER.fullmatch(part) for part in entry.name.split("/")):
            _remove(directory / entry.name, entry.kind)


def _remove(path: Path, kind: str) -> None:
    if kind == "folder":
        with suppress(OSError):  # something has come into it: it stays
            path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _walk(directory: Path, stages: set[str], inside: str = "") -> Iterator[Entry]:
    """All entries, a folder before what is in it; links are not followed, and foreign folders not entered."""
    with os.scandir(directory) as entries:
        found = sorted((entry.name, _kind(entry)) for entry in entries)
    for name, kind in found:
        entry = Entry(inside + name, kind)
        yield entry
        if kind == "folder" and _is_written(entry, stages):
            yield from _walk(directory / name, stages, f"{entry.name}/")


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


def _is_written(entry: Entry, stages: set[str]) -> bool:
    if entry.kind == "folder":
        return _FOLDER.fullmatch(entry.name) is not None
    if entry.kind != "file":
        return False
    if picture := _PICTURE.fullmatch(entry.name):
        return picture["name"] in _CHARTS | {f"{stage}_batch" for stage in stages}
    return any(kind.fullmatch(entry.name) for kind in (_FILE, _STARTING_FILE, _BUNDLE_FILE, _STATE_FILE))


def _has_own_name(name: str, stages: set[str]) -> bool:
    return any(_is_written(Entry(name, kind), stages) for kind in ("file", "folder"))


def _stages(directory: Path) -> set[str]:
    """Names of the run's stages, which its pictures have."""
    file = directory / RECIPE
    if file.is_symlink() or not file.is_file():
        return set()
    try:
        stages = RecipeSource.read(file).document.get("stages")
    except RecipeError:
        return set()
    listed = stages if isinstance(stages, list) else []
    return {str(stage["name"]) for stage in listed if isinstance(stage, dict) and "name" in stage}
