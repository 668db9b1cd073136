"""What a person sees while a run goes on: on a terminal, in a log, or in a notebook."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

from rich import progress as bars
from rich.console import Console
from rich.markup import escape

from finetune.run.notebook_output import NotebookOutput, in_notebook

_T = TypeVar("_T")
_Block = TypeVar("_Block", bound=Sequence[Sized])


class Progress:
    """Lines as things happen and, on a terminal or in a notebook, a bar for the stage under way.

    Attributes:
        check: is called between the items of long work with what is under way, and may raise.
    """

    def __init__(self, quiet: bool = False, check: Callable[[str], None] = lambda when: None) -> None:
        """
        Args:
            quiet: show nothing.
            check: is called between the items of long work with what is under way, and may raise.
        """
        self.check = check
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[detail]}"),
            bars.TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=in_notebook() or not self._console.is_terminal,
        )
        self._notebook = NotebookOutput(self._bar.get_renderable) if in_notebook() and not quiet else None
        self._task: bars.TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._notebook is not None:
            self._notebook.close()

    def say(self, text: str) -> None:
        if self._notebook is not None:
            self._notebook.say(text)
        else:
            self._console.print(escape(text), soft_wrap=True)

    def _refresh(self, now: bool = False) -> None:
        """A terminal's bar moves by itself; a notebook's does not."""
        if self._notebook is not None:
            self._notebook.refresh(now)

    def stage(self, name: str, total: int, done: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=total, completed=done, detail="compiling")
        self._refresh(now=True)

    def advance(self, step: int, loss: float, accuracy: float, learning_rate: float) -> None:
        if self._task is not None:
            detail = f"loss {loss:.3f}  accuracy {accuracy:.3f}  rate {learning_rate:.1e}"
            self._bar.update(self._task, completed=step, detail=detail)
            self._refresh()

    def track(self, items: Iterable[_T], name: str, total: int | None = None) -> Iterator[_T]:
        """The items, with a bar of its own while they are taken."""
        task = self._bar.add_task(name, total=total, detail="")
        try:
            for item in items:
                self.check(f"during {name}")
                yield item
                self._bar.advance(task)
                self._refresh()
        finally:
            self._bar.remove_task(task)

    def count(self, blocks: Iterable[_Block], name: str, total: int, done: int = 0) -> Iterator[_Block]:
        """Blocks of rows, with a bar of its own that counts the rows and shows how many a second."""
        task, began, first = self._bar.add_task(name, total=total, completed=done, detail=""), time.monotonic(), done
        try:
            for block in blocks:
                yield block
                self.check(f"during {name}")
                done += len(block[0])
                rate = (done - first) / max(time.monotonic() - began, 1e-9)
                self._bar.update(task, completed=done, detail=f"{rate:,.0f}/s")
                self._refresh()
        finally:
            self._bar.remove_task(task)

    @contextmanager
    def busy(self, name: str) -> Iterator[None]:
        """A bar without an end while something goes on inside."""
        task = self._bar.add_task(name, total=None, detail="")
        self._refresh(now=True)
        try:
            yield
        finally:
            self._bar.remove_task(task)
