"""Text and JSON from files that others wrote: only regular files, of a bounded size, with one meaning."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, ModelError, shown

# Bytes that a file may have. The largest that are published have about 3 MB of JSON (21,841 classes) and a tokenizer of
# 34 MB (Gemma's).
RECIPE_BYTES = 2**18  # two seconds' work, if all of it is comments
JSON_BYTES = 2**23
TOKENIZER_BYTES = 2**26
_DEPTH = 64  # of JSON; published files have 5
_NESTED = 500_000  # lists and objects of JSON, each of which takes fifty times the memory of its text
_DIGITS = 20  # of a whole number


def read_bytes(file: Path, most: int, error: type[FinetuneError] = ModelError) -> bytes:
    """The content of a regular file.

    Args:
        file: devices, pipes, sockets and folders are not opened.
        most: bytes that it may have.
        error: what to raise.

    Raises:
        FinetuneError: of the type ``error``; the file cannot be read, is of another kind, or is larger.
    """
    try:
        return _read(file, most)
    except ValueError as cause:
        raise error(f"{shown(file)}: cannot be read: {cause}") from None


def read_json(file: Path, error: type[FinetuneError] = ModelError, most: int = JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a regular file; see :func:`parse_json` for what it may not have.

    Raises:
        FinetuneError: of the type ``error``; the file cannot be read, or holds something other than an object.
    """
    try:
        data = parse_json(_read(file, most))
    except ValueError as cause:
        raise error(f"{shown(file)}: cannot be read as JSON: {cause}") from None
    if not isinstance(data, dict):
        raise error(f"{shown(file)}: needs a JSON object; received {type(data).__name__}")
    return data


def require_file(file: Path, most: int, error: type[FinetuneError] = ModelError) -> None:
    """Before another library opens a file; arguments and errors as in :func:`read_bytes`."""
    try:
        if _regular(file).st_size > most:
            raise ValueError(_too_large(most))
    except ValueError as cause:
        raise error(f"{shown(file)}: cannot be read: {cause}") from None


def _read(file: Path, most: int) -> bytes:
    """
    Raises:
        ValueError: why not.
    """
    _regular(file)  # opening some devices has an effect already
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            _require_regular(os.fstat(stream.fileno()))  # it may have been replaced in between
            data = stream.read(most + 1)
    except OSError as error:
        raise ValueError(error.strerror or error) from None
    if len(data) > most:
        raise ValueError(_too_large(most))
    return data


def _regular(file: Path) -> os.stat_result:
    try:
        return _require_regular(os.stat(file))
    except OSError as error:
        raise ValueError(error.strerror or error) from None


def _require_regular(facts: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("not a regular file, such as a pipe, device or folder; give a file")
    return facts


def _too_large(most: int) -> str:
    return f"more than {most / 2**20:g} MB, which no file of its kind needs"


def parse_json(text: str | bytes) -> Any:
    """JSON that every reader reads alike: finite numbers, and each key once.

    Raises:
        ValueError: it is not valid, a key stands twice, a number is not finite or has too many digits, or objects and
            lists are too many or nested too deeply.
    """
    brackets = ("{", "[") if isinstance(text, str) else (b"{", b"[")
    if sum(map(text.count, brackets)) > _NESTED:  # type: ignore[arg-type]
        raise ValueError(f"more than {_NESTED:,} lists and objects")
    try:
        data = json.loads(
            text, object_pairs_hook=_with_unique_keys, parse_constant=_float, parse_float=_float, parse_int=_int
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {_DEPTH} levels") from None
    level = [data]
    for _ in range(_DEPTH):
        level = [child for node in level if isinstance(node, dict | list) for child in _children(node)]
        if not level:
            return data
    raise ValueError(f"nested deeper than {_DEPTH} levels")


def _children(node: dict[str, Any] | list[Any]) -> Any:
    return node.values() if isinstance(node, dict) else node


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = set()
        repeated = next(key for key, _ in pairs if key in keys or keys.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key '{shown(repeated)}' stands twice in one object")
    return data


def _float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:_DIGITS]} is not a finite number")
    return number


def _int(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits is out of range")
    return int(text)
