"""Threads and processes that make batches: how many there may be, and how processes end."""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from finetune.errors import RecipeError

_T = TypeVar("_T")
_MOST_THREADS = 16
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def usable_cpus() -> int:
    """Processors that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count() -> int:
    """Threads that decode images side by side."""
    return min(_MOST_THREADS, usable_cpus())


def map_in_threads(function: Callable[[int], _T], count: int) -> Iterator[_T]:
    """``function(0), function(1), ...``, in this order; computed in threads, only a few ahead of what is taken."""
    threads = thread_count()
    ahead: deque[Future[_T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for index in range(count):
                ahead.append(pool.submit(function, index))
                if len(ahead) > 4 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def check_workers(count: int) -> None:
    """Before ``count`` processes are started.

    Raises:
        RecipeError: there are more than processors, or each of them would run the program that starts them once more.
    """
    most = usable_cpus()
    if count > most:
        raise RecipeError(
            f"data.num_workers: {count} is more than the {most} processors that may be used here; at most {most}"
        )
    if line := _unguarded_line(sys._getframe()):
        raise RecipeError(
            f"data.num_workers: {count}: worker processes import the script that starts them, and {line} would run "
            'once more in each; put it under  if __name__ == "__main__":  or set num_workers: 0'
        )


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Threads and processes that are started inside do not get SIGINT and SIGTERM, not even before their first line."""
    resource_tracker.ensure_running()  # its start, which is part of that of the first process, would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent(*_: Any) -> None:
    """Called first in a worker process: it leaves signals to its parent, and ends when that does, however it ends."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    """The parent holds the other end of a pipe, which the system closes; it may have done so before this line."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while os.getppid() == parent.pid and not connection.wait([parent.sentinel], timeout=1):
        pass
    os._exit(1)


def _unguarded_line(frame: FrameType | None) -> str | None:
    """``file:line`` of the main script's statement that led here, if it runs on import too."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    while frame is not None and not (frame.f_globals is vars(main) and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    if frame is None or file is None:
        return None  # not from a script's top level, or in a session that no process can import
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
    for statement in tree.body:
        if statement.lineno <= frame.f_lineno <= (statement.end_lineno or statement.lineno):
            return None if _is_guard(statement) else f"{file}:{frame.f_lineno}"
    return None


def _is_guard(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and any(
        isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(statement.test)
    )
