"""What a run writes in its folder, by name and kind. All else there is somebody's, and is never removed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from finetune.data.image_record import IMAGES_FILE
from finetune.errors import RecipeError
from finetune.export.layout import ARRAY_FILE, ARRAY_FOLDER
from finetune.recipe.source import RecipeSource

RECIPE, RUN, SKIPPED = "recipe.yaml", "run.json", "skipped_images.txt"
SUMMARY, METRICS, PREDICTIONS = "summary.json", "metrics.jsonl", "predictions.parquet"
START, REPORT, IMAGES, TRACKERS = "start.safetensors", "report.html", IMAGES_FILE, "trackers.json"
STATE, MODEL, FIGURES, EVENTS = "state", "model", "figures", "events"
STARTING = ".starting"  # a folder for the files of a run that is about to start

_CHARTS = {"confusion", "curves", "mistakes", "reliability", "weight_change"}
_UNFINISHED = r"(\.\d+\.new)?"
_FILES = (RECIPE, RUN, SKIPPED, SUMMARY, METRICS, PREDICTIONS, START, REPORT, IMAGES, TRACKERS)
_FILE = re.compile(rf"({'|'.join(map(re.escape, _FILES))}){_UNFINISHED}|\.lock")
_STARTING_FILE = re.compile(rf"{re.escape(STARTING)}/({'|'.join(map(re.escape, _FILES))}){_UNFINISHED}")
_PICTURE = re.compile(rf"{FIGURES}/(?P<name>.+)\.png{_UNFINISHED}")
_LEFT_OVER = re.compile(rf".+\.\d+\.new|{MODEL}\.old")
_TEMPORARY = r"(\.orbax-checkpoint-tmp(-\d+)?)?"
_BUNDLE = rf"{MODEL}(\.old|{_UNFINISHED})"
_WEIGHTS = rf"{_BUNDLE}/weights{_TEMPORARY}"
_STEP = rf"{STATE}/\d+{_TEMPORARY}"
_ITEM = rf"{_STEP}/\w+{_TEMPORARY}"
_FOLDER = re.compile(
    rf"{re.escape(STARTING)}|{FIGURES}|{EVENTS}|{_BUNDLE}|{_WEIGHTS}(/{ARRAY_FOLDER})?|{STATE}|{_STEP}|{_ITEM}(/{ARRAY_FOLDER})?"
)
_BUNDLE_FILE = re.compile(
    rf"{_BUNDLE}/(model\.json|novelty\.safetensors|README\.md){_UNFINISHED}|{_WEIGHTS}/{ARRAY_FILE}"
)
_EVENT_FILE = re.compile(rf"{EVENTS}/events\.out\.tfevents\.[\w.-]+")
_STATE_FILE = re.compile(rf"{_STEP}/(_CHECKPOINT_METADATA|commit_success\.txt)|{_ITEM}/{ARRAY_FILE}")


@dataclass(frozen=True)
class Entry:
    """Something in a run's folder.

    Attributes:
        name: the path in the folder, with slashes.
        kind: ``folder``, ``file``, ``link`` or ``other``.
    """

    name: str
    kind: str


class Contents:
    """What there is in a folder that a run may have written. Nothing is followed that is a link."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def foreign(self) -> list[str]:
        """What no run wrote; of a folder that is foreign, the folder alone."""
        return [entry.name for entry in self._walk() if not self._is_written(entry)]

    def links(self) -> list[str]:
        """Links where a run writes: its own names, and anything inside its own folders."""
        links = [entry.name for entry in self._walk() if entry.kind == "link"]
        return [name for name in links if "/" in name or _FILE.fullmatch(name) or _FOLDER.fullmatch(name)]

    def remove_written(self) -> list[str]:
        """Removes what a run wrote, and the folder if nothing else is in it.

        First goes what makes it a run, so that half of one is none; last the recipe, which names its pictures.

        Returns:
            What is left, as no run wrote it.
        """
        if self._directory.is_symlink() or not self._directory.is_dir():
            return []
        order = {RUN: 0, RECIPE: 2}
        for entry in sorted(self._written(), key=lambda entry: order.get(entry.name, 1)):
            self._remove(entry)
        with suppress(OSError):  # something else is in it
            self._directory.rmdir()
            return []
        return self.foreign()

    def remove_unfinished(self) -> None:
        """Removes what a killed process was writing or had replaced; nobody else writes now."""
        for entry in self._written():
            if any(_LEFT_OVER.fullmatch(part) for part in entry.name.split("/")):
                self._remove(entry)

    def _written(self) -> list[Entry]:
        """What a run wrote, a folder behind what is in it."""
        return [entry for entry in self._walk() if self._is_written(entry)][::-1]

    def _remove(self, entry: Entry) -> None:
        path = self._directory / entry.name
        if entry.kind == "folder":
            with suppress(OSError):  # something that no run wrote is in it: it stays
                path.rmdir()
        else:
            path.unlink(missing_ok=True)

    def _walk(self, inside: str = "") -> Iterator[Entry]:
        """All entries, a folder before what is in it; foreign folders are not entered."""
        with os.scandir(self._directory / inside) as entries:
            listed = sorted((entry.name, _kind(entry)) for entry in entries)
        for name, kind in listed:
            entry = Entry(inside + name, kind)
            yield entry
            if kind == "folder" and self._is_written(entry):
                yield from self._walk(f"{entry.name}/")

    def _is_written(self, entry: Entry) -> bool:
        if entry.kind == "folder":
            return _FOLDER.fullmatch(entry.name) is not None
        if entry.kind != "file":
            return False
        if picture := _PICTURE.fullmatch(entry.name):
            return picture["name"] in _CHARTS or picture["name"] in self._batches
        kinds = (_FILE, _STARTING_FILE, _BUNDLE_FILE, _STATE_FILE, _EVENT_FILE)
        return any(kind.fullmatch(entry.name) for kind in kinds)

    @cached_property
    def _batches(self) -> set[str]:
        """Names of the pictures of each stage's first batch."""
        file = self._directory / RECIPE
        if file.is_symlink() or not file.is_file():
            return set()
        try:
            stages = RecipeSource.read(file).document.get("stages")
        except RecipeError:
            return set()
        named = [stage for stage in stages or () if isinstance(stage, dict)] if isinstance(stages, list) else []
        return {f"{stage.get('name')}_batch" for stage in named}


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if entry.is_file(follow_symlinks=False) else "other"
