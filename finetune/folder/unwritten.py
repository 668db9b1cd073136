"""A run's folder as the processes see it for which another one writes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune.folder.run_folder import RunFolder


class UnwrittenFolder(RunFolder):
    """A run's folder that this process neither locks, nor checks, nor writes to. It may not even reach it."""

    @contextmanager
    def reserve(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        yield

    def start(self, *args: Any, **kwargs: Any) -> None: ...

    def check_ours(self) -> None: ...

    def log(self, record: Any) -> None: ...

    def save_start(self, head: Any) -> None: ...

    def write_summary(self, summary: Any) -> None: ...

    def forget_summary(self) -> None: ...

    def write_recipe(self, recipe: Any) -> None: ...

    def add_to_history(self, record: Any) -> None: ...
