"""The errors a user can cause and mend.

Each message says what was wrong, where, what was received and what to do. The command line prints it alone and ends
with the error's exit code; in Python they are ordinary exceptions.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

# Of a message; what is longer is cut, since some of it may be from a file that others wrote.
_LINE, _LINES, _WORD = 2000, 200, 100  # characters, lines, characters
# What moves a terminal's cursor, changes its colors, turns the direction of text, or cannot be encoded.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class FinetuneError(Exception):
    """Base of every error that is the input's fault rather than the program's.

    Its message is safe to print: control characters are escaped, and what is very long is cut.

    Attributes:
        exit_code: the command line's.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class RecipeError(FinetuneError):
    """A recipe, or an override of one, that does not say something valid."""


class ModelError(FinetuneError):
    """A pretrained checkpoint that is missing, unreadable or not what it says it is."""


class TransferError(ModelError):
    """Weights and model disagree: a leaf is missing, unexpected or of another shape."""


class PartitionError(FinetuneError):
    """Partition rules that do not cover the parameters, or match none of them."""


class DataError(FinetuneError):
    """Images or labels that cannot be used."""


class CheckpointError(FinetuneError):
    """A run's folder or model bundle that is missing, incomplete or damaged."""


class MachineError(FinetuneError):
    """The machine lacks what was asked of it: memory, a device, room on a disk, a permission."""


class MeshError(FinetuneError):
    """Devices or processes that cannot share what was asked of them."""


class ProcessLost(MachineError):
    """Another process of the run has ended, or does not answer."""


class Diverged(FinetuneError):
    """Training gave numbers that are not finite. What was good before is kept."""

    exit_code = 3


class Interrupted(FinetuneError):
    """A signal (its number is ``signal``) stopped the run after its state was saved."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
        self.exit_code = 128 + signal


def nearest(word: str, valid: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest valid word, or nothing where none is close."""
    if len(word) > _WORD:  # the comparison takes quadratic time
        return ""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def cut(text: str, most: int = _WORD) -> str:
    """A text of any length, for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def listed(names: Sequence[str], most: int = 10) -> str:
    """``a, b, c``, cut off after ``most``."""
    return ", ".join(map(cut, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's message, or its kind where it has none."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def shown(name: object) -> str:
    """A name from outside, such as a file's, on one line."""
    text = on_one_line(name)
    return text if len(text) <= 300 else f"{text[:200]}... ({len(text):,} characters)"


def on_one_line(text: object) -> str:
    """A line to print that has names from outside in it, such as those of files."""
    return printable(str(text).replace("\n", "\\n"))


def printable(text: str) -> str:
    """A message without what a terminal would obey, such as an escape sequence in the name of a file, and cut."""
    lines = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text)).split("\n")
    lines = [line if len(line) <= _LINE else f"{line[:_LINE]}... ({len(line):,} characters)" for line in lines]
    return "\n".join([*lines[:_LINES], f"... and {len(lines) - _LINES:,} more lines"] if len(lines) > _LINES else lines)
