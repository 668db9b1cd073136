"""What an object shows of itself: a few facts, on one line or, in a notebook, as a table."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from reprlib import Repr
from typing import Any

from finetune.errors import listed, printable

_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80
_BRIEF.maxtuple = 4
_MOST = 20  # items of a list that a table names


class ShownByFacts(ABC):
    """Base of classes that hold arrays, or more than anyone wants to see printed."""

    @abstractmethod
    def _facts(self) -> Mapping[str, Any]:
        """name -> a text, a number, or a tuple of texts; None is not shown."""

    def __repr__(self) -> str:
        facts = {name: value for name, value in self._facts().items() if value is not None}
        return f"{type(self).__name__}({', '.join(f'{name}={_brief(value)}' for name, value in facts.items())})"

    def _repr_html_(self) -> str:
        from finetune.page.html import render

        return render("facts.html", title=type(self).__name__, facts=table_rows(self._facts()), more=None)


def table_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts as a table's cells."""
    return [(name.replace("_", " "), _text(value)) for name, value in facts.items() if value is not None]


def dimensions(shape: tuple[int, ...]) -> str:
    """``32 x 32 x 3``"""
    return " x ".join(map(str, shape))


def without_secrets(text: str) -> str:
    """A text whose URLs neither log in nor sign."""
    text = re.sub(r"://[^/@\s]+@", "://...@", text)
    return re.sub(r"(://[^?\s]+\?)\S+", r"\1...", text)


def _brief(value: Any) -> str:
    if isinstance(value, tuple):
        value = tuple(map(without_secrets, map(str, value)))
    return _BRIEF.repr(without_secrets(value) if isinstance(value, str) else value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple):
        value = listed([str(item) for item in value], _MOST)
    return printable(without_secrets(str(value)))
