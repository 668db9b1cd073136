"""The errors a user can cause and mend.

Each message says what was wrong, where, what was received and what to do. The command line prints it alone and ends
with the error's exit code; in Python they are ordinary exceptions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FinetuneError(Exception):
    """Base of every error that is the input's fault rather than the program's.

    Attributes:
        exit_code: the command line's.
    """

    exit_code = 2


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
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def listed(names: Sequence[str], most: int = 10) -> str:
    """``a, b, c``, cut off after ``most``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's message, or its kind where it has none."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
