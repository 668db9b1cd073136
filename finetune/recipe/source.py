"""A recipe as text: YAML 1.2 with line numbers and overrides, and how a recipe is saved."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from finetune.errors import RecipeError, nearest, shown
from finetune.recipe.base import KeyPath, Part, split_key
from finetune.recipe.yaml_text import Unreadable, parse_yaml
from finetune.untrusted import RECIPE_BYTES, read_bytes

_OVERRIDE = 2**16  # characters
_KEYS = 32  # of an override's path


@dataclass
class RecipeSource:
    """The parsed document of ``path``, with what overrides changed in it."""

    path: Path
    document: CommentedMap
    overridden: dict[KeyPath, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> RecipeSource:
        try:
            document = parse_yaml(read_bytes(path, RECIPE_BYTES, RecipeError))
        except Unreadable as error:
            line = f":{error.line}" if error.line else ""
            raise RecipeError(f"{shown(path)}{line}: {error}") from None
        if not isinstance(document, CommentedMap):
            raise RecipeError(f"{shown(path)}: a recipe is a mapping of keys to values; received {_kind(document)}")
        return cls(path, document)

    def override(self, text: str, takes_text: Callable[[KeyPath], bool] = lambda _: False) -> None:
        """Applies ``a.b.0.c=value`` or ``~a.b``; values are read as YAML.

        Args:
            takes_text: whether the value at a path is a text: then it is as it was typed, except for quotes around it.
        """
        if len(text) > _OVERRIDE:
            raise RecipeError(
                f"override {text[:40]!r}...: has {len(text):,} characters, where {_OVERRIDE:,} are allowed"
            )
        match = re.fullmatch(r"(?:~(?P<gone>[^=]+)|(?P<key>[^=]+)=(?P<value>.*))", text, re.DOTALL)
        if match is None:
            raise RecipeError(f"override {text!r}: write key=value, or ~key to delete a key")
        keys = split_key((match["gone"] or match["key"]).strip())
        if len(keys) > _KEYS:
            raise RecipeError(f"override {text[:40]!r}...: a path of {len(keys):,} keys; no recipe is so deep")
        parent = self._parent(keys, text)
        if match["gone"]:
            if isinstance(parent, CommentedMap) and keys[-1] not in parent:
                close = nearest(str(keys[-1]), map(str, parent))
                raise RecipeError(f"override {text!r}: there is no key {keys[-1]!r}{close}")
            del parent[keys[-1]]
            return
        try:
            parent[keys[-1]] = _value(match["value"], takes_text(keys))
        except Unreadable as error:
            raise RecipeError(f"override {text!r}: {match['value']!r} is not a YAML value: {error}") from None
        self.overridden.pop(keys, None)  # so that the latest comes last
        self.overridden[keys] = text

    def _parent(self, keys: KeyPath, text: str) -> Any:
        """The container that holds the last key; mappings on the way are made where they are missing."""
        node: Any = self.document
        for depth, key in enumerate(keys):
            if isinstance(node, CommentedSeq):
                if not isinstance(key, int) or not 0 <= key < len(node):
                    raise RecipeError(f"override {text!r}: {key!r} is no item of a list of {len(node)} (from 0)")
            elif not isinstance(node, CommentedMap):
                raise RecipeError(f"override {text!r}: {'.'.join(map(str, keys[:depth]))} has no keys inside")
            if depth == len(keys) - 1:
                break
            if isinstance(node, CommentedMap) and key not in node:
                node[key] = CommentedMap()
            node = node[key]
        return node

    def where(self, at: KeyPath) -> str:
        """``file:line`` of the deepest part of the path that the file has, or the override that wrote it."""
        for written, text in reversed(self.overridden.items()):  # a later one writes over an earlier one
            if at and (at[: len(written)] == written or (written[: len(at)] == at and not self._in_file(at))):
                return f"override {text!r}"
        line, node = None, self.document
        for key in at:
            try:
                line = (node.lc.key(key) if isinstance(node, CommentedMap) else node.lc.item(key))[0]
                node = node[key]
            except (AttributeError, KeyError, IndexError, TypeError):
                break
        return f"{shown(self.path)}:{line + 1}" if line is not None else shown(self.path)

    def _in_file(self, at: KeyPath) -> bool:
        node: Any = self.document
        for key in at:
            if isinstance(node, CommentedMap) and key not in (node.lc.data or {}):
                return False
            node = node[key]
        return True

    def keys_at(self, at: KeyPath) -> list[str]:
        """The keys of the mapping at a path; none where there is no mapping."""
        node: Any = self.document
        for key in at:
            node = node.get(key) if isinstance(node, CommentedMap) else None
        return list(node) if isinstance(node, CommentedMap) else []

    def make_paths_absolute(self, keys: Iterable[KeyPath], is_name: Callable[[str], bool]) -> None:
        """Paths that stand in the file are relative to its folder; those of overrides, to the working directory.

        Args:
            keys: where there are paths.
            is_name: whether a value is a name rather than a path, unless there is such a file.
        """
        folder = self.path.absolute().parent
        for at in keys:
            node: Any = self.document
            for key in at[:-1]:
                node = node.get(key) if isinstance(node, CommentedMap) else None
            value = node.get(at[-1]) if isinstance(node, CommentedMap) else None
            typed = any(at[: len(written)] == written for written in self.overridden)
            if not isinstance(value, str) or typed or value.startswith("~"):
                continue
            if os.path.exists(folder / value) or not is_name(value):  # a Path raises where the name is too long
                node[at[-1]] = str(folder / value)

    def plain(self) -> dict[str, Any]:
        """The document as plain dicts, lists and scalars."""
        return _plain(self.document)


def dump_recipe(recipe: Part) -> str:
    """A recipe as YAML text that :func:`load_recipe` reads back as an equal one.

    It holds every value that has an effect, defaults too, so that other defaults in a later version do not change it.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False  # type: ignore[assignment]
    yaml.width = 1 << 16  # a path on one line
    stream = StringIO()
    yaml.dump(recipe.model_dump(mode="json"), stream)
    return stream.getvalue()


def purpose(path: Path) -> str:
    """What a recipe's header says it is for: the comment lines from ``# Purpose:`` to the next such key."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# Purpose:"):
            words = [line.removeprefix("# Purpose:").strip()]
        elif words and (not line.startswith("#") or re.match(r"# \w+:", line)):
            break
        elif words:
            words.append(line.removeprefix("#").strip())
    return " ".join(words)


def _value(text: str, is_text: bool) -> Any:
    """An override's value."""
    bare = text.strip()
    if is_text and bare not in ("", "~", "null") and not bare.startswith(("'", '"')) and not _is_list(bare):
        return bare
    return parse_yaml(text)


def _is_list(text: str) -> bool:
    return text.startswith("[") and text.endswith("]")


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {_plain(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):  # ruamel marks scalars with subclasses that remember how they were written
        if isinstance(node, kind):
            return kind(node)
    return node


def _kind(node: Any) -> str:
    return "nothing" if node is None else "a list" if isinstance(node, list) else f"the value {node!r}"
