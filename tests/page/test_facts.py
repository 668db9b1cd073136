import pytest

from finetune.page.facts import ShownByFacts


class Shown(ShownByFacts):
    def __init__(self, **facts):
        self._given = facts

    def _facts(self):
        return self._given


def test_facts_stand_on_one_line_without_those_that_are_none():
    assert repr(Shown(name="a", count=1234, absent=None, parts=("b", "c"))) == (
        "Shown(name='a', count=1234, parts=('b', 'c'))"
    )


def test_a_line_is_short_however_long_its_facts_are():
    line = repr(Shown(name="x" * 10_000, names=tuple(str(i) * 500 for i in range(1000)), text="a\nb\x1b[2J\u202e"))
    assert len(line) < 600
    assert line.isprintable()


def test_a_table_has_names_for_people_and_numbers_with_separators():
    table = Shown(num_features=1234567, frozen=True, absent=None, names=tuple("abc"))._repr_html_()
    assert ">num features</th>" in table
    assert ">1,234,567</td>" in table
    assert ">yes</td>" in table
    assert ">a, b, c</td>" in table
    assert "absent" not in table


def test_what_others_wrote_is_escaped_and_cut():
    hostile = '<script>alert("1")</script>&\x1b[2J'
    table = Shown(name=hostile, names=(hostile,) * 1000)._repr_html_()
    assert "<script" not in table
    assert "&lt;script&gt;" in table
    assert "\x1b" not in table
    assert "and 980 more" in table


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:secret@host/runs/1", "s3://...@host/runs/1"),
        ("https://host/data.parquet?signature=secret", "https://host/data.parquet?..."),
        ("https://me:secret@host/data?x=secret", "https://...@host/data?..."),
        ("owner/name@main", "owner/name@main"),
    ],
)
def test_urls_are_shown_without_secrets(url, shown):
    for facts in ({"source": url}, {"sources": (url,)}):
        assert shown in repr(Shown(**facts))
        assert shown in Shown(**facts)._repr_html_()
        assert "secret" not in repr(Shown(**facts)) + Shown(**facts)._repr_html_()


def test_a_table_takes_the_colors_of_the_notebook():
    table = Shown(name="a")._repr_html_()
    assert "color" not in table
    assert "background" not in table
