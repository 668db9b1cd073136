"""CSV files as programs and people write them."""

import pytest
from PIL import Image

from finetune.data.sources.csv_text import read_text_table
from finetune.data.splits import load_splits
from finetune.errors import DataError
from finetune.recipe import Columns, DataConfig

ROWS = [(f"img/{name}{i}.png", name) for name in ("cat", "größe") for i in range(6)]


@pytest.fixture
def load(tmp_path):
    """``load(text, encoding, **options)``: the splits of a CSV file beside its images."""
    (tmp_path / "img").mkdir()
    for i, (path, _) in enumerate(ROWS):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / path)

    def load(text, encoding="utf-8", name="t.csv", **options):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return load_splits(DataConfig(source=str(tmp_path / name), validation=0.0, **options), 0)

    return load


def table(separator=",", header="file,label", end="\n", rows=ROWS):
    lines = [header.replace(",", separator), *(f"{path}{separator}{label}" for path, label in rows)]
    return end.join(lines) + end


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", ", ", " ; "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_delimiter_is_seen(load, separator, end):
    splits = load(table(separator, end=end))
    assert splits.class_names == ("cat", "größe")
    assert len(splits.train) + len(splits.test) == 12


def test_a_tsv_file_with_another_delimiter_is_read(load):
    assert load(table(","), name="t.tsv").class_names == ("cat", "größe")
    assert load(table("\t"), name="t.tsv").class_names == ("cat", "größe")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_the_encoding_is_seen(load, encoding):
    splits = load(table(), encoding)
    assert splits.class_names == ("cat", "größe")
    assert any("cp1252" in note for note in splits.notes) == (encoding == "cp1252")


def test_spaces_around_values_are_no_part_of_them(load):
    rows = [(path, label + " " * (i % 3)) for i, (path, label) in enumerate(ROWS)]
    assert load(table(rows=rows)).class_names == ("cat", "größe")


def test_windows_separators_are_understood(load):
    assert len(load(table(rows=[(path.replace("/", "\\"), label) for path, label in ROWS])).train) == 9


def test_a_first_line_that_names_an_image_is_data(load):
    splits = load("\n".join(f"{path},{label}" for path, label in ROWS))
    assert len(splits.train) + len(splits.test) == 12
    assert "has no header" in splits.notes[0]
    assert load("\n".join(",".join(row) for row in ROWS), columns=Columns(label="column 2")).class_names[0] == "cat"


@pytest.mark.parametrize("labels", [("1.0", "2.0"), ("1", "2")])
def test_labels_as_floats_are_integers(load, labels):
    splits = load(table(rows=[(path, labels[i % 2]) for i, (path, _) in enumerate(ROWS)]))
    assert splits.class_names == ("1", "2")


def test_fields_with_the_delimiter_may_be_quoted(load):
    rows = [(path, f'"{label}, large"') for path, label in ROWS]
    assert load(table(rows=rows)).class_names == ("cat, large", "größe, large")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("file,label\n\nimg/cat0.png,cat\n\nimg/cat1.png,cat,1\n", "line 5: has 3 fields, and the table has 2 columns"),
        ("file,label\nimg/cat0.png,cat\nimg/cat1.png,\n", "line 3"),
        ("file,label,label\nimg/cat0.png,cat,cat\n", "two columns are called 'label'"),
        ("file,\nimg/cat0.png,cat\n", "column 2 has no name"),
        ("file,label\nhttps://a.org/x.png,cat\nhttps://a.org/y.png,dog\n", "has URLs.*download"),
        ("file,score\nimg/cat0.png,0.5\nimg/cat1.png,0.25\n", "no column looks like labels"),
        ("file\0label\n\0\0\0", "not a text"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line_and_cause(load, text, message):
    with pytest.raises(DataError, match=message):
        load(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: b"file,label\n" + b"x" * (1 << 24) + b"y,a\n", "line 2: 16,777,220 characters; at most 16,777,216"),
        (lambda: b"file,label\n" + b"," * 1_000_000, "line 2: has 1,000,001 fields; at most 10,000"),
        (lambda: b",".join(b"c%d" % i for i in range(20_000)), "line 1: has 20,000 fields"),
        (
            lambda: b"file,label\n" + b"a.png,cat\n" * 500 + b"b.png,\0dog\n",
            "line 502: not a text: it holds zero bytes",
        ),
        (
            lambda: b'file,label\n"' + b"a.png,cat\n" * (1 << 21),
            "line 2: field larger than field limit .*; close the quotes",
        ),
    ],
    ids=["one line", "fields", "columns", "zeros", "unclosed quotes"],
)
def test_tables_of_no_sensible_size_are_refused(tmp_path, data, message):
    (tmp_path / "t.csv").write_bytes(data())
    with pytest.raises(DataError, match=message):
        read_text_table(tmp_path / "t.csv")


def test_quotes_that_swallow_rows_are_named_with_the_line_where_they_open(load):
    rows = [(path, f'{label},"tall' if i in (2, 7) else f"{label},small") for i, (path, label) in enumerate(ROWS)]
    with pytest.raises(DataError, match="line 4: quotes that open here hold 5 further lines.*close the quotes"):
        load(table(header="file,label,note", rows=rows))


def test_a_text_of_several_lines_in_quotes_is_one_field(load):
    rows = [(path, f'{label},"a cat, or\nno cat, small"') for path, label in ROWS]
    splits = load(table(header="file,label,note", rows=rows), columns=Columns(label="label"))
    assert len(splits.train) + len(splits.test) == 12


def test_the_delimiter_that_excel_states_is_taken_and_lines_are_counted_with_it(load):
    assert load("sep=;\n" + table(";")).class_names == ("cat", "größe")
    with pytest.raises(DataError, match="line 3: two columns are called 'file'"):
        load("sep=;\n\n" + table(";", header="file,file"))
