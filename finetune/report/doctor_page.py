"""The data doctor's page: what it says, beside the images that it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from finetune.data.labeled_images import Split
from finetune.images.open import open_image
from finetune.page.html import picture, render
from finetune.report.findings import CLEAR, count_findings

_LABEL_ERRORS, _GROUPS, _IN_GROUP, _OUTLIERS, _OVERLAPS, _LEAKS, _SMALL = 96, 24, 8, 32, 5, 16, 100

Tile = tuple[Markup, list[str]]


def make_page(result: Mapping[str, Any], images: Split) -> str:
    """``doctor.html``.

    Args:
        result: of :func:`~finetune.report.doctor.diagnose_data`.
        images: of all splits, in the order of the result's ids.
    """
    tiles = _Tiles(images)
    overlap = result["overlap"]
    return render(
        "doctor.html",
        result=result,
        clear_factor=CLEAR,
        summary=[(name, f"{count:,}") for name, count in count_findings(result).items()],
        label_errors=[tiles.error(error) for error in result["label_errors"]["images"][:_LABEL_ERRORS]],
        conflicts=[
            {**group, "tiles": [tiles.plain(image) for image in group["images"][:_IN_GROUP]]}
            for group in result["conflicts"][:_GROUPS]
        ],
        outliers=[
            tiles.plain(image, f"distance {image['distance']:.2f}")
            for image in result["outliers"]["images"][:_OUTLIERS]
        ],
        overlap=[{**pair, "tiles": [tiles.plain(image) for image in pair["between"]]} for pair in overlap[:_OVERLAPS]],
        overlap_rows=[_overlap_row(pair) for pair in overlap],
        leaks=[[tiles.plain(image) for image in pair["images"]] for pair in result["leakage"]["pairs"][:_LEAKS]],
        small_rows=[_small_row(entry, list(result["splits"])) for entry in result["small_classes"][:_SMALL]],
    )


class _Tiles:
    """Pictures with captions."""

    def __init__(self, images: Split) -> None:
        self._images = images

    def error(self, error: Mapping[str, Any]) -> Tile:
        alt = f"labelled {error['label']}, perhaps {error['suggested']}"
        lines = [
            f"{error['label']} → {error['suggested']}",
            f"{error['label_probability']:.1%} → {error['probability']:.1%}",
            _place(error),
        ]
        return self._picture(error, alt), lines

    def plain(self, image: Mapping[str, Any], *more: str) -> Tile:
        return self._picture(image, f"labelled {image['label']}"), [image["label"], *more, _place(image)]

    def _picture(self, image: Mapping[str, Any], alt: str) -> Markup:
        return picture(open_image(self._images.images[image["id"]]), alt)


def _place(image: Mapping[str, Any], most: int = 40) -> str:
    """The split and the end of the path: its last two parts, which mostly are the class's folder and the file."""
    name = "/".join(PurePath(image["image"]).parts[-2:])
    return f"{image['split']}: {name if len(name) <= most else f'…{name[-most:]}'}"


def _overlap_row(pair: Mapping[str, Any]) -> list[str]:
    first, second = f"{pair['first_as_second']:,}", f"{pair['second_as_first']:,}"
    return [" / ".join(pair["classes"]), first, second, f"{pair['share']:.1%}"]


def _small_row(entry: Mapping[str, Any], splits: Sequence[str]) -> list[str]:
    counts = [f"{entry['images'][split]:,}" for split in splits]
    return [entry["class"], *counts, "; ".join(entry["problems"])]
