"""Links lead somewhere, on GitHub as on the site."""

import re
from collections import Counter

import pytest
from doc_blocks import PAGES, prose
from paths import ROOT

FILES = [
    *PAGES,
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *ROOT.glob("benchmarks/*.md"),
]
_LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def anchors(path):
    """Those that GitHub gives to headings."""
    seen = Counter()
    for heading in re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        yield f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor
        seen[anchor] += 1


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_its_links_lead_to_files_and_headings(file):
    for link in _LINK.findall(prose(file.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (file.parent / name).resolve() if name else file
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in set(anchors(target)), link


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('# "I don\'t know"\n## [A b](c.md), `d_e`\n## A\n## A\n```\n# no heading\n```\n')
    assert list(anchors(page)) == ["i-dont-know", "a-b-d_e", "a", "a-1"]
