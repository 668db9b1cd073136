"""What a run says in a notebook: one output of the cell, which is replaced as the run goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType

_WIDTH = 100  # characters of the moving part
_PAUSE = 0.25  # seconds between two pictures of it


def in_notebook() -> bool:
    """Whether a kernel of Jupyter's runs this process."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class NotebookOutput:
    """Lines that stay and, below them while it is open, what moves. It is plain text, which every front end shows in
    its own colours, which needs no widgets, and of which only the lines are left in the saved notebook."""

    def __init__(self, moving: Callable[[], RenderableType]) -> None:
        self._moving = moving
        self._lines: list[str] = []
        self._handle: Any = None
        self._shown_at = 0.0

    def say(self, line: str) -> None:
        self._lines.append(line)
        self.refresh(now=True)

    def refresh(self, now: bool = False) -> None:
        """Shows what moves as it is by now; unless ``now`` is asked for, only once in a while."""
        if now or time.monotonic() - self._shown_at > _PAUSE:
            text = StringIO()
            console = Console(file=text, width=_WIDTH, color_system=None, force_jupyter=False, force_terminal=False)
            console.print(self._moving())
            self._show([*self._lines, text.getvalue().rstrip()])
            self._shown_at = time.monotonic()

    def close(self) -> None:
        """Leaves the lines alone."""
        if self._handle is not None:
            self._show(self._lines)

    def _show(self, lines: list[str]) -> None:
        from IPython.display import display

        text = {"text/plain": "\n".join(line for line in lines if line)}
        if self._handle is None:
            self._handle = display(text, raw=True, display_id=True)
        else:
            self._handle.update(text, raw=True)
