"""Regular expressions in recipes, whose compilation and matching end in bounded time.

They have the syntax of :mod:`re`, which cannot be interrupted: a pattern such as ``(a|a)*b`` takes time exponential in
the length of a path. :mod:`regex` matches the same and stops at a timeout, but unrolls counted repeats when it
compiles, so those are limited.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Iterable

BLOCKS = re.compile(r"blocks\[(-?\d{1,9}|(-?\d{0,9}):(-?\d{0,9}))\]")  # a selector, not a regular expression

_LENGTH = 1000  # characters
_REPEATS = 10_000  # the product of all counts in braces
_SECONDS = 1.0  # for all paths


def check_pattern(pattern: str) -> None:
    """
    Raises:
        ValueError: not a regular expression, or one that could take too long to compile.
    """
    if len(pattern) > _LENGTH:
        raise ValueError(f"a regular expression of {len(pattern):,} characters, where {_LENGTH:,} are allowed")
    counts = (int(count) for count in re.findall(r"\{(?:\d*,)?(\d{1,9})", pattern))
    if math.prod(max(1, count) for count in counts) > _REPEATS:
        raise ValueError("not a regular expression that is fast to match: its repeats {...} multiply to over 10,000")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of syntax that later versions may have
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression ({error})") from None


def matching(pattern: str, paths: Iterable[str]) -> set[str]:
    """The paths that a regular expression matches as a whole.

    Raises:
        ValueError: see :func:`check_pattern`; or matching takes longer than a second, as nested repeats may.
    """
    import regex

    check_pattern(pattern)
    try:
        compiled, end = regex.compile(pattern), time.monotonic() + _SECONDS
        return {path for path in paths if compiled.fullmatch(path, timeout=max(1e-3, end - time.monotonic()))}
    except (regex.error, RecursionError) as error:
        raise ValueError(f"not a regular expression ({error})") from None
    except TimeoutError:
        raise ValueError(
            "a regular expression that takes more than a second to match, as one repeat inside another may: simplify it"
        ) from None
