"""CSV files as people have them: any usual encoding and delimiter, with or without a header."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import DataError, listed
from finetune.files import open_regular
from finetune.images.formats import is_named_like_an_image

_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}  # the likeliest first
_SAMPLE = 200  # lines that the delimiter is chosen by
_SAMPLE_SIZE = 1 << 20  # characters of them
_MAX_LINE = 1 << 24  # characters, also of a field, which may have several lines
_MAX_COLUMNS = 10_000


@dataclass(frozen=True)
class TextTable:
    """A table of texts, without the spaces around them.

    Attributes:
        columns: names, in order.
        rows: each as long as ``columns``.
        lines: number of each row in the file, as an editor counts.
        notes: what was understood where another reading is possible.
    """

    columns: list[str]
    rows: list[list[str]]
    lines: list[int]
    notes: tuple[str, ...]


def read_text_table(path: Path) -> TextTable:
    """
    Raises:
        DataError: the file is empty, rows have different lengths, a column has no name or that of another, or quotes
            that are not closed hold rows.
    """
    text, notes = _decode(path)
    if stated := re.match(r"sep=(.)\r?\n", text):  # as Excel writes it
        delimiter, text = stated[1], "\n" + text[stated.end() :]
    else:
        delimiter = _delimiter(path, text)
    lines, records = _records(path, text, delimiter)
    if not records:
        raise DataError(f"{path}: is empty; a table has a header and a row for each image")
    header, first = records[0], lines[0]
    if any(is_named_like_an_image(field) for field in header):
        columns = [f"column {i + 1}" for i in range(len(header))]
        notes.append(f"{path}: has no header: the first line names an image; columns are called {listed(columns)}")
    else:
        columns, lines, records = header, lines[1:], records[1:]
    for line, record in zip(lines, records, strict=True):
        if len(record) != len(columns):
            raise DataError(
                f"{path}: line {line}: has {len(record)} fields, and the table has {len(columns)} columns "
                f"({listed(columns)}); fields that hold the delimiter {delimiter!r} need quotes"
            )
    keep = [i for i, name in enumerate(columns) if name or any(record[i] for record in records)]
    _check_names([columns[i] for i in keep], f"{path}: line {first}")
    rows = [[record[i] for i in keep] for record in records]
    return TextTable([columns[i] for i in keep], rows, lines, tuple(notes))


def _decode(path: Path) -> tuple[str, list[str]]:
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if b"\0" in data[:4096] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        # UTF-16 without a mark has a zero in every second byte of what is ASCII
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
        if data[1:2] != b"\0" and data[:1] != b"\0":
            raise DataError(f"{path}: not a text: it holds zero bytes; give a CSV or Parquet file")
    else:
        encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return _without_zeros(path, data.decode(encoding)), []
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise DataError(f"{path}: not a text in UTF-8 or {encoding.upper()}; save it as UTF-8") from None
    try:
        return _without_zeros(path, data.decode("cp1252")), [
            f"{path}: is not UTF-8, and was read as Windows-1252 (cp1252)"
        ]
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line}: encoding is neither UTF-8 nor Windows-1252; save it as UTF-8") from None


def _without_zeros(path: Path, text: str) -> str:
    if (at := text.find("\0")) >= 0:
        line = text.count("\n", 0, at) + 1
        raise DataError(f"{path}: line {line}: not a text: it holds zero bytes; give a CSV or Parquet file")
    return text


def _delimiter(path: Path, text: str) -> str:
    """The one that gives all lines of a sample the same number of fields, two or more."""
    delimiters = _DELIMITERS.get(path.suffix.lower(), ",;\t|")
    sample = "".join(text[:_SAMPLE_SIZE].splitlines(keepends=True)[:_SAMPLE])
    regular = []
    for delimiter in delimiters:
        lengths = [len(record) for record in _reader(sample, delimiter) if any(field.strip() for field in record)]
        if lengths and lengths[0] > 1:
            regular.append((lengths.count(lengths[0]) / len(lengths), delimiter))
    if not regular:
        return delimiters[0]
    best = max(share for share, _ in regular)
    return next(delimiter for share, delimiter in regular if share == best)


def _records(path: Path, text: str, delimiter: str) -> tuple[list[int], list[list[str]]]:
    """(number of the first line, stripped fields) of each record that is not empty."""
    reader = _reader(text, delimiter)
    lines, records, line = [], [], 1
    try:
        for record in reader:
            if len(record) > _MAX_COLUMNS:
                raise DataError(f"{path}: line {line}: has {len(record):,} fields; at most {_MAX_COLUMNS:,}")
            if swallowed := next((field for field in record if _holds_rows(field, delimiter)), None):
                count = len(swallowed.splitlines()) - 1
                raise DataError(
                    f"{path}: line {line}: quotes that open here hold {count} further lines, and one of them names an "
                    "image; close the quotes"
                )
            fields = [field.strip() for field in record]
            if any(fields):
                lines.append(line)
                records.append(fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {line}: {error}; close the quotes, or save it as a plain table") from None
    return lines, records


def _holds_rows(field: str, delimiter: str) -> bool:
    """Whether a quoted field goes on over rows: a line of it has fields, of which one names an image."""
    further = field.splitlines()[1:]
    parts = (line.split(delimiter) for line in further)
    return any(len(row) > 1 and any(is_named_like_an_image(part.strip()) for part in row) for row in parts)


def _reader(text: str, delimiter: str) -> Any:
    csv.field_size_limit(_MAX_LINE)
    return csv.reader(_lines(text), delimiter=delimiter, skipinitialspace=True)


def _lines(text: str) -> Iterator[str]:
    for line in io.StringIO(text, newline=""):
        if len(line) > _MAX_LINE:
            raise csv.Error(f"{len(line):,} characters; at most {_MAX_LINE:,}")
        yield line


def _check_names(names: list[str], where: str) -> None:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if not name:
            raise DataError(f"{where}: column {i + 1} has no name; give it one")
        if name in seen:
            raise DataError(f"{where}: two columns are called {name!r}; rename one")
        seen.add(name)
