"""YAML 1.2 that others wrote: of bounded depth and size once its aliases are expanded, and without tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
)
from ruamel.yaml.parser import RoundTripParser

from finetune.errors import first_line

_DEPTH = 32
_NODES = 10_000  # scalars, lists and mappings; a second's work


class Unreadable(ValueError):
    """A text that is not valid, or asks for too much.

    Attributes:
        line: where, from 1; None where that is not known.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def parse_yaml(text: str | bytes) -> Any:
    """A text's one document, in ruamel's types, which know their lines.

    Raises:
        Unreadable: it is not YAML, or more deeply nested or larger than any recipe; an alias stands inside what it
            refers to; it has tags, keys that are lists or mappings, or whole numbers
            of more than 64 bits.
    """
    yaml = YAML(typ="rt", pure=True)
    yaml.Parser = _BoundedParser
    try:
        document = yaml.load(text.decode() if isinstance(text, bytes) else text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context
        raise Unreadable(f"not valid YAML: {problem}", mark.line + 1 if mark else None) from None
    except Exception as error:  # ruamel's constructors let through whatever a number or a date leads to
        raise Unreadable(f"not a YAML text: {first_line(error)}") from None
    _require_small_numbers(document)
    return document


@dataclass
class _Open:
    """A list or mapping that has begun: its anchor, the nodes before it, and its children so far."""

    anchor: str | None
    before: int
    is_mapping: bool
    children: int = 0


class _BoundedParser(RoundTripParser):
    """Counts what it parses, so that nothing large is built.

    Attributes:
        open: from the outermost to the innermost.
        sizes: anchor -> its nodes, with those of the aliases in it.
        nodes: so far.
    """

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self.open: list[_Open] = []
        self.sizes: dict[str, int] = {}
        self.nodes = 0

    def get_event(self) -> Any:
        event = super().get_event()
        if isinstance(event, CollectionEndEvent):
            closed = self.open.pop()
            if closed.anchor is not None:
                self.sizes[closed.anchor] = self.nodes - closed.before
        elif isinstance(event, NodeEvent):
            self._check(event)
            if isinstance(event, CollectionStartEvent):
                self.open.append(_Open(event.anchor, self.nodes, isinstance(event, MappingStartEvent)))
            elif isinstance(event, ScalarEvent) and event.anchor is not None:
                self.sizes[event.anchor] = 1
            self._count(event, self.sizes.get(event.anchor, 1) if isinstance(event, AliasEvent) else 1)
        return event

    def _check(self, event: Any) -> None:
        """Whether a node may stand where it does."""
        if self.open:
            around = self.open[-1]
            if around.is_mapping and around.children % 2 == 0 and not isinstance(event, ScalarEvent):
                self._refuse(event, "a key is no text")  # building keys of keys takes exponential time
            around.children += 1
        if isinstance(event, AliasEvent):
            if any(around.anchor == event.anchor for around in self.open):
                self._refuse(event, f"the alias *{event.anchor} stands inside what it refers to")
        elif event.ctag is not None and str(event.ctag) != "!":
            self._refuse(event, f"the tag {event.ctag} is not supported; write plain values")

    def _count(self, event: Any, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > _NODES:
            self._refuse(event, f"more than {_NODES:,} values, with those that aliases repeat")
        if len(self.open) > _DEPTH:
            self._refuse(event, f"nested deeper than {_DEPTH} levels")

    def _refuse(self, event: Any, problem: str) -> None:
        raise MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _require_small_numbers(document: Any) -> None:
    """At any depth: whole numbers have at most 64 bits."""
    nodes = [(document, None)]
    while nodes:
        node, line = nodes.pop()
        if isinstance(node, int) and node.bit_length() > 64:
            raise Unreadable("a whole number is out of range", line)
        if isinstance(node, CommentedMap | CommentedSeq):
            lines = {key: at[0] + 1 for key, at in (node.lc.data or {}).items()}
            keys = list(node) if isinstance(node, CommentedMap) else range(len(node))
            nodes += [(key, lines.get(key, line)) for key in keys if isinstance(node, CommentedMap)]
            nodes += [(node[key], lines.get(key, line)) for key in keys]
