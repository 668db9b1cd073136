"""A table of the images with corrected labels, for a person to go through and a recipe to read."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.files import written_atomically
from finetune.images.formats import is_named_like_an_image, readable_formats
from finetune.recipe import DataConfig
from finetune.report.findings import Evidence
from finetune.tracking import Track, untracked

COLUMNS = ("image", "split", "label", "given", "suggested", "reason", "score")


def write_corrected(path: Path, result: Mapping[str, Any], evidence: Evidence, track: Track = untracked) -> None:
    """Writes a row for each image.

    ``label`` is what a run reads: the suggestion where that is clear, else the label as given; ``given`` is the latter
    in every row. ``suggested``, ``reason`` and ``score`` (the probability of the suggestion out of fold) are empty
    where nothing speaks against the label. Paths are relative to the table's folder for images below it. Images that
    are no files of their own are written to :func:`folder_of_images`, bit for bit.

    Args:
        path: of the .csv file, which does not exist.
        result: of :func:`~finetune.report.doctor.diagnose_data`.
    """
    suggestions = suggested_labels(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        written_atomically(path) as beside,
        beside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for image in track(range(len(evidence.images)), "corrected labels", len(evidence.images)):
            given = evidence.label(image)
            label, suggested, reason, score = suggestions.get(image, (given, "", "", ""))
            split = evidence.places[image][0]
            rows.writerow([_file(evidence, image, path), split, label, given, suggested, reason, score])


def suggested_labels(result: Mapping[str, Any]) -> dict[int, tuple[str, str, str, str]]:
    """The index of each image whose label is doubted -> label to read, suggested label, reason and score.

    Copies get one label, whatever the probe says of each; near duplicates keep theirs unless the probe is clear, too.
    """
    suggestions: dict[int, tuple[str, str, str, str]] = {}
    for error in result["label_errors"]["images"]:
        label = error["suggested"] if error["clear"] else error["label"]
        suggestions[error["id"]] = (label, error["suggested"], "label error", f"{error['probability']:.4f}")
    for group in reversed(result["conflicts"]):  # what is said of copies counts, and they come first
        for image in group["images"]:
            given, suggested = image["label"], group["suggested"]
            if given == suggested:
                suggestions.pop(image["id"], None)
            else:
                kind = "copy" if group["exact"] else "near duplicate"
                agreed = suggestions.get(image["id"], (given,))[0] == suggested
                label = suggested if group["exact"] or agreed else given
                suggestions[image["id"]] = (label, suggested, f"{kind} with another label", "")
    return suggestions


def overrides_to_read(path: Path, data: DataConfig) -> list[str]:
    """What to add to a recipe so that it reads such a table: all images that were looked at, in the same splits."""
    sources = [f"data.source={path}", *(f"data.columns.{role}={role}" for role in ("image", "label", "split"))]
    held_out = data.shots_per_class is not None or not data.has_default("validation")
    made = {"fraction": 1, "shots_per_class": "null", "test": 0.2, "subset": "null", "revision": "null"}
    back = [f"data.{name}={value}" for name, value in made.items() if not data.has_default(name)]
    return [*sources, *(["data.validation=0"] if held_out else []), *back]


def folder_of_images(table: Path) -> Path:
    """Where images go that are no files of their own."""
    return table.with_name(f"{table.stem}_images")


def _file(evidence: Evidence, index: int, table: Path) -> str:
    """The path of an image, which is written first where it is no file."""
    image = evidence.images.images[index]
    if not isinstance(image, Path | str):
        split, number = evidence.places[index]
        folder = folder_of_images(table)
        folder.mkdir(exist_ok=True)
        data, ending = (image, _ending(image)) if isinstance(image, bytes) else (_png(image), ".png")
        image = folder / f"{split}-{number:06}{ending}"
        image.write_bytes(data)
    base, whole = table.parent.absolute(), Path(image).absolute()
    return str(whole.relative_to(base) if whole.is_relative_to(base) else whole)


def _ending(data: bytes) -> str:
    with Image.open(BytesIO(data), formats=readable_formats()) as image:
        ending = f".{(image.format or '').lower()}"
    return ending if is_named_like_an_image(f"image{ending}") else ".jpg"  # readers look at contents, not at names


def _png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()
