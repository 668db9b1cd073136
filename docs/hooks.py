"""MkDocs hooks: pages show what the code says of itself, and link to files of the repository that are no pages."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from reference import api, command_line, errors, recipe

_GENERATED = {"recipe": recipe, "api": api, "command-line": command_line, "errors": errors}
_MARK = re.compile(r"^<!-- reference: (\S+) -->$", re.MULTILINE)
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """``<!-- reference: NAME -->`` becomes what the code says; a link out of docs/ leads to the repository."""
    folder = posixpath.dirname(page.file.src_uri)

    def out_of_docs(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, match[1]))
        inside = target.startswith("docs/")
        return match[0] if inside else f"]({config.repo_url}/blob/main/{target}{match[2] or ''})"

    shown = _MARK.sub(lambda match: _GENERATED[match[1]].reference(), markdown)
    return _LINK.sub(out_of_docs, shown)
