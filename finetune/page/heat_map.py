"""A confusion matrix: as SVG in a page, where each cell says what it counts, and as a PNG file."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from finetune.images.fonts import font_for
from finetune.page.figures import Chart, save_charts

_NUMBERED = 15  # classes up to which each cell shows its count
_LABEL = 18  # characters of a class name; a cell's title has all of them
_UPRIGHT = 2  # characters up to which the labels of columns are not turned
_GAP = 5  # pixels between labels and cells


@dataclass(frozen=True)
class ConfusionMatrix:
    """Of n classes, which may be some of more.

    Attributes:
        counts: int [n, n], true classes by row and answers by column.
        totals: int [n], the images of each true class.
        names: of the n classes.
    """

    counts: np.ndarray
    totals: np.ndarray
    names: Sequence[str]

    @property
    def shares(self) -> np.ndarray:
        """float [n, n], of the images of each true class."""
        return self.counts / np.maximum(self.totals[:, None], 1)


def heat_map(matrix: ConfusionMatrix, alt: str) -> Markup:
    """The matrix with a cell for each pair of classes that occurs, stronger the larger its share of the row.

    Args:
        alt: what it shows, for those who do not see it.
    """
    names = matrix.names
    size = max(9, min(36, 720 // len(names)))
    font = min(12, size - 1)
    labels = [_short(name) for name in names]
    margin = max(round(0.6 * font * max(map(_width, labels))) + 2 * _GAP, font + 2 * _GAP)
    edge = margin + size * len(names)
    kind = "matrix small" if len(names) <= _NUMBERED else "matrix"
    svg = '<svg class="{2}" viewBox="0 0 {0} {0}" width="{0}" height="{0}" role="img" aria-label="{1}">'
    parts = [
        Markup(svg).format(edge, alt, kind),
        Markup('<rect class="frame" x="{0}" y="{0}" width="{1}" height="{1}"/>').format(margin, edge - margin),
        Markup('<g font-size="{}">').format(font),
    ]
    row = '<text x="{}" y="{}" dy=".35em" text-anchor="end">{}</text>'
    column = '<text transform="translate({},{}) rotate(-90)" dy=".35em">{}</text>'
    if max(map(_width, labels)) <= _UPRIGHT:
        column = '<text x="{}" y="{}" text-anchor="middle">{}</text>'
    for i, label in enumerate(labels):
        middle, end = margin + size * (i + 0.5), margin - _GAP
        parts += [Markup(row).format(end, middle, label), Markup(column).format(middle, end, label)]
    parts.append(Markup('</g><g font-size="{}" text-anchor="middle">').format(font))
    parts += [_cell(matrix, int(row), int(column), size, margin) for row, column in np.argwhere(matrix.counts)]
    return Markup("").join([*parts, Markup("</g></svg>")])


def _cell(matrix: ConfusionMatrix, row: int, column: int, size: int, margin: int) -> Markup:
    names, count, total = matrix.names, int(matrix.counts[row, column]), int(matrix.totals[row])
    kind, what = ("right", "recognized") if row == column else ("wrong", f"taken for {names[column]}")
    x, y = margin + size * column, margin + size * row
    opacity = 0.15 + 0.85 * (count / total) ** 0.5
    rect = '<rect class="{}" x="{}" y="{}" width="{}" height="{}" fill-opacity="{:.2f}"><title>{}</title></rect>'
    title = f"{names[row]}: {count:,} of {total:,} {what}"
    cell = Markup(rect).format(kind, x, y, size - 1, size - 1, opacity, title)
    if len(names) > _NUMBERED:
        return cell
    shade = "on-strong" if opacity > 0.6 else "on-weak"
    number = Markup('<text class="{}" x="{}" y="{}" dy=".35em">{}</text>')
    return cell + number.format(shade, x + size / 2, y + size / 2, count)


def save_heat_map(path: Path, matrix: ConfusionMatrix) -> None:
    """Writes the same matrix as a PNG file."""
    save_charts(path, [_drawn(matrix)])


def _drawn(matrix: ConfusionMatrix) -> Chart:
    counts, names, shares = matrix.counts, matrix.names, np.sqrt(matrix.shares)
    places, numbered = range(len(names)), len(names) <= _NUMBERED
    fonts = [font_for(_short(name)) for name in names]
    labels = [_short(name) if fonts[i] else f"class {i}" for i, name in enumerate(names)]

    def draw(axes: Any) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="answer", ylabel="true class")
        for axis, turn in ((axes.xaxis, 90), (axes.yaxis, 0)):
            axis.set_ticks(places, labels, rotation=turn, fontsize=9 if numbered else 6)
            for tick, font in zip(axis.get_ticklabels(), fonts, strict=True):
                if font is not None:
                    tick.set_fontproperties(_at_size(str(font.path), tick.get_fontsize()))
        for row, column in np.argwhere(counts) if numbered else ():
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=color)

    inside, label = max(3.0, 0.1 * len(names)), 0.5 + 0.08 * max(map(_width, labels))
    return Chart(draw, (inside + label + 0.2, inside + label + 0.2), (label, 0.2, label, 0.2))


def _at_size(path: str, size: float) -> Any:
    from matplotlib.font_manager import FontProperties

    return FontProperties(fname=path, size=size)


def _short(name: str) -> str:
    return name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"


def _width(text: str) -> int:
    """In narrow characters; those of East Asian scripts are as wide as two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
