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
    name = shown(file)
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # opening some devices has an effect already
            raise error(f"{name}: not a regular file, such as a pipe, device or folder; give a file")
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # replaced in between
                raise error(f"{name}: not a regular file")
            data = stream.read(most + 1)
    except (OSError, ValueError) as cause:  # the latter: a null byte in the name
        raise error(f"{name}: cannot be read: {getattr(cause, 'strerror', None) or cause}") from None
    if len(data) > most:
        raise error(f"{name}: has more than {most / 2**20:g} MB, which no file of its kind needs")
    return data


def read_text(file: Path, most: int, error: type[FinetuneError] = ModelError) -> str:
    """The UTF-8 text of a regular file; arguments and errors as in :func:`read_bytes`."""
    data = read_bytes(file, most, error)
    try:
        return data.decode()
    except UnicodeDecodeError as cause:
        raise error(f"{shown(file)}: not a UTF-8 text: byte {cause.start:,} cannot be decoded") from None


def read_json_object(file: Path, error: type[FinetuneError] = ModelError, most: int = JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a regular file; see :func:`parse_json` for what it may not have.

    Raises:
        FinetuneError: of the type ``error``; the file cannot be read, or holds something other than an object.
    """
    try:
        data = parse_json(read_text(file, most, error))
    except ValueError as cause:
        raise error(f"{shown(file)}: cannot be read as JSON: {cause}") from None
    if not isinstance(data, dict):
        raise error(f"{shown(file)}: needs a JSON object; received {type(data).__name__}")
    return data


def parse_json(text: str | bytes) -> Any:
    """JSON that every reader reads alike: finite numbers, and each key once.

    Raises:
        ValueError: it is not valid, a key stands twice, a number is not finite or has too many digits, or objects and
            lists are nested too deeply.
    """
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
        raise ValueError(f"the key {shown(repeated)!r} stands twice in one object")
    return data


def _float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:_DIGITS]} is not a finite number")
    return number


def _int(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits is out of range")
    return int(text)
