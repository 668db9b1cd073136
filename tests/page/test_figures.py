import re

import pytest
from PIL import Image

from finetune.page.figures import Line, bar_chart, line_chart, reliability_chart, save_charts, svg

HOSTILE = '<script>alert("x")</script> $5 & $x_1$'


def test_a_chart_is_described_and_has_the_colours_of_the_page():
    drawn = svg(line_chart(HOSTILE, [Line(HOSTILE, [(1, 0.5), (2, 0.25)])]), HOSTILE)
    assert drawn.startswith("<svg ")
    assert 'role="img"' in drawn
    assert "<script>" not in drawn
    assert drawn.count("$5 &amp; $x_1$") == 3  # aria-label, title and legend, as text
    assert "currentColor" in drawn
    assert "#000000" not in drawn


def test_a_name_that_is_not_utf_8_is_drawn_escaped():
    assert "caf\\udce9" in svg(line_chart("loss", [Line("caf\udce9", [(1, 2)])]), "of caf\udce9")


def test_ids_of_two_charts_do_not_clash():
    first, second = (svg(line_chart("loss", [Line("a", [(1, 2), (2, 1)])]), alt) for alt in ("one", "two"))
    ids = [set(re.findall(r'id="([^"]+)"', drawn)) for drawn in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r'(?:url\(|href=")#(\w+)', first)) <= ids[0]


def test_charts_side_by_side_are_as_wide_as_each_alone(tmp_path):
    charts = [
        line_chart("loss", [Line("a", [(1, 2), (2, 1)])]),
        reliability_chart("test", {"before": [(0.5, 0.25, 3), (0.9, 1.0, 7)]}, "confidence", "right"),
        bar_chart("change", {"stem": 0.1, "encoder/layers/0": 0.5}, "%"),
    ]
    save_charts(tmp_path / "new" / "all.png", charts)
    with Image.open(tmp_path / "new" / "all.png") as image:
        assert image.width == pytest.approx(120 * sum(chart.size[0] for chart in charts), abs=2)


def test_a_format_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="doc"):
        save_charts(tmp_path / "a.doc", [line_chart("loss", [Line("a", [(1, 2)])])])
