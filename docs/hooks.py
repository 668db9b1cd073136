"""MkDocs hooks: pages show what the code says of itself, and link to files of the repository that are no pages."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from reference import api, command_line, errors, recipe

_GENERATED = {"recipe": recipe, "api": api, "command-line": command_line, "errors": errors}
_MARK = re.compile(r"^<!-- reference: (\S+) -->$", re.MULTILINE)
_OUTWARD = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")
_CELL = re.compile(r"<td>.*?</td>", re.DOTALL)
_ROLE = re.compile(r":\w+:<code>~?(?:finetune\.)?([^<]*)</code>")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """``<!-- reference: NAME -->`` becomes what the code says, and a link out of docs/ leads to the repository."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def to_the_repository(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        return link[0] if target.startswith("docs/") else f"]({config.extra['repository']}/blob/main/{target}"

    shown = _MARK.sub(lambda mark: _GENERATED[mark[1]].reference(), markdown)
    return _OUTWARD.sub(to_the_repository, shown)


def on_page_content(html: str, **_: Any) -> str:
    """What is written for GitHub or for Python is as meant: ``\\|`` for a bar in a table's code, and roles of
    reStructuredText in docstrings, such as ``:func:``."""
    html = _CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)
    return _ROLE.sub(r"<code>\1</code>", html)
