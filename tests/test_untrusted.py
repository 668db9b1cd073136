"""Files that others wrote are read only if they are regular, small and have one meaning."""

import os

import pytest

from finetune.errors import DataError, ModelError
from finetune.untrusted import parse_json, read_bytes, read_json, require_file


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "absent", "null"])
def test_only_regular_files_are_opened(tmp_path, kind):
    file = tmp_path / "here.json"
    if kind == "pipe":
        os.mkfifo(file)  # opening it would wait for a writer
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "null":
        file = tmp_path / "a\0b"
    for read in (lambda: read_bytes(file, 100), lambda: read_json(file), lambda: require_file(file, 100)):
        with pytest.raises(ModelError, match="cannot be read"):
            read()


def test_a_file_may_have_its_limit_and_not_a_byte_more(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100)
    assert read_bytes(tmp_path / "a", 100) == b"x" * 100
    with pytest.raises(DataError, match=r"more than .* MB, which no file of its kind needs"):
        read_bytes(tmp_path / "a", 99, DataError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ("[-Infinity]", "-Infinity is not a finite number"),
        ("1e999", "1e999 is not a finite number"),
        ("9" * 5000, "a whole number of 5,000 digits is out of range"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ("{", "Expecting"),
        (b"\xff\xfe\xff", "codec"),
    ],
)
def test_json_has_one_meaning(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_plain_json_is_read_as_it_is(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, -2.5, "é", null, true], "b": {"a": {}}}')
    assert read_json(tmp_path / "a.json") == {"a": [1, -2.5, "é", None, True], "b": {"a": {}}}


def test_a_files_name_does_not_reach_the_terminal_as_it_is(tmp_path):
    with pytest.raises(ModelError) as raised:
        read_json(tmp_path / "a\x1b[31m\nb\u202e\udcff")
    message = str(raised.value)
    assert message.isprintable()
    assert "a\\x1b[31m\\nb\\u202e\\udcff: cannot be read as JSON" in message
