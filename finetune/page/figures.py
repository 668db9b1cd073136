"""Charts: inside a page as SVG whose colours suit light and dark, and beside it as PNG files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from markupsafe import Markup

from finetune.files import written_atomically

# Of middling lightness, so that they are seen on white and on black, and told apart by those who see few colours.
COLORS = ("#2f81d6", "#e07b1f", "#1f9e77", "#c2549d", "#b0920b", "#d1495b", "#17a2b8", "#8b6fd6")
_GRID = "#80808055"
_STYLE: Mapping[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a dollar in a name is a dollar
}


@dataclass(frozen=True)
class Chart:
    """What is drawn on matplotlib's axes.

    Attributes:
        size: of the whole in inches.
        margins: left, right, below and above the axes, in inches: matplotlib's own layout takes as long as the drawing.
    """

    draw: Callable[[Any], None]
    size: tuple[float, float] = (4.0, 2.8)
    margins: tuple[float, float, float, float] = (0.78, 0.12, 0.45, 0.3)


@dataclass(frozen=True)
class Line:
    """A curve: its points are (x, y), in order of x; lines of one ``color`` (a number) belong together."""

    label: str
    points: Sequence[Sequence[float]]
    color: int = 0
    dashed: bool = False


def line_chart(title: str, lines: Sequence[Line], x_label: str = "epoch") -> Chart:
    """Curves in one frame, with a legend."""

    def draw(axes: Any) -> None:
        handles = []
        for line in lines:
            marker, style = "." if len(line.points) < 30 else None, "--" if line.dashed else "-"
            color = COLORS[line.color % len(COLORS)]
            handles += axes.plot(*zip(*line.points, strict=True), style, marker=marker, color=color)
        axes.set(title=title, xlabel=x_label)
        axes.xaxis.get_major_locator().set_params(integer=x_label == "epoch")
        axes.yaxis.get_major_locator().set_params(nbins=6)
        axes.grid(color=_GRID)
        axes.legend(handles, [_utf8(line.label) for line in lines])

    return Chart(draw)


def reliability_chart(title: str, curves: Mapping[str, Sequence[Sequence[float]]], x_label: str, y_label: str) -> Chart:
    """How often a model is right against how sure it is; on the diagonal it is as often right as it says.

    Args:
        curves: by name, [confidence, share that is right, number] of each bin; marks grow with the number.
    """

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], ":", color="#808080", linewidth=1)
        handles = []
        for i, points in enumerate(curves.values()):
            confidence, right, counts = zip(*points, strict=True)
            handles += axes.plot(confidence, right, color=COLORS[i], linewidth=1.2)
            sizes = [12 + 90 * count / sum(counts) for count in counts]
            axes.scatter(confidence, right, sizes, color=COLORS[i], alpha=0.75, linewidths=0)
        axes.set(title=title, xlabel=x_label, ylabel=y_label, xlim=(-0.02, 1.04), ylim=(-0.02, 1.04))
        axes.grid(color=_GRID)
        axes.legend(handles, list(curves), loc="upper left")

    return Chart(draw, (4.3, 4.0))


def bar_chart(title: str, bars: Mapping[str, float], x_label: str) -> Chart:
    """Horizontal bars, from top to bottom."""

    def draw(axes: Any) -> None:
        axes.barh(range(len(bars)), list(bars.values()), color=COLORS[0], height=0.7)
        axes.set(title=title, xlabel=x_label)
        axes.set_yticks(range(len(bars)), list(bars))
        axes.invert_yaxis()
        axes.grid(axis="x", color=_GRID)
        axes.set_axisbelow(True)

    left = 0.25 + 0.078 * max(map(len, bars))
    return Chart(draw, (left + 3, 0.75 + 0.21 * len(bars)), (left, 0.15, 0.45, 0.3))


def svg(chart: Chart, alt: str) -> Markup:
    """A chart as part of a page. Its black is the page's text colour, and its fonts are the page's.

    Args:
        alt: what it shows, for those who do not see it.
    """
    text = StringIO()
    with _styled({"svg.hashsalt": _utf8(alt)}):  # ids that no other chart of the page has
        _drawn([chart]).savefig(text, format="svg", transparent=True, metadata={"Date": None})
    whole = text.getvalue()
    box = re.search(r'viewBox="([^"]+)"', whole)
    assert box is not None
    inside = whole[whole.index("<defs>") : whole.rindex("</svg>")]
    inside = re.sub(r"<style.*?</style>", "", inside, flags=re.DOTALL)
    inside = re.sub(r'<g id="[^"]*"', "<g", inside)  # nothing refers to them, and each chart has the same
    inside = inside.replace("#000000", "currentColor").replace("'DejaVu Sans'", "system-ui, sans-serif")
    opening = Markup('<svg viewBox="{}" role="img" aria-label="{}" stroke-linejoin="round">').format(box[1], alt)
    return opening + Markup(inside) + Markup("</svg>")


def save_charts(path: Path, charts: Sequence[Chart]) -> None:
    """Writes charts side by side to a file; its suffix names the format.

    Raises:
        ValueError: a format that matplotlib does not write.
    """
    with _styled({}):
        figure = _drawn(charts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_atomically(path) as beside:
            figure.savefig(beside, format=path.suffix[1:], dpi=120)


def _drawn(charts: Sequence[Chart]) -> Any:
    """A figure of the charts side by side."""
    from matplotlib.figure import Figure

    width, height = sum(chart.size[0] for chart in charts), max(chart.size[1] for chart in charts)
    figure, x = Figure(figsize=(width, height)), 0.0
    for chart in charts:
        left, right, below, above = chart.margins
        inside = chart.size[0] - left - right, chart.size[1] - below - above
        bottom = height - chart.size[1] + below
        chart.draw(figure.add_axes(((x + left) / width, bottom / height, inside[0] / width, inside[1] / height)))
        x += chart.size[0]
    return figure


def _utf8(name: str) -> str:
    """Names of folders may be no UTF-8, which matplotlib does not draw."""
    return name.encode(errors="backslashreplace").decode()


@contextmanager
def _styled(more: Mapping[str, Any]) -> Iterator[None]:
    """Matplotlib's own settings and those of this file, whatever the user's are."""
    from matplotlib import style

    with style.context(["default", {**_STYLE, **more}]):
        yield
