"""How far long work is: a function that passes items on, and may show a bar while they are taken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Track(Protocol):
    """``track(items, name, total)`` gives the items."""

    def __call__(self, items: Iterable[_T], name: str, total: int | None = None, /) -> Iterable[_T]: ...


def untracked(items: Iterable[_T], name: str, total: int | None = None, /) -> Iterable[_T]:
    """Shows nothing."""
    return items
