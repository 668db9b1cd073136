"""``finetune`` in a process that strikes itself.

    python -m benchmarks.faults.striker '{"root": "DIR", "at": 37}' run ...

``{"root", "at"}``: SIGKILL just before the ``at``-th operation below the folder ``root`` that writes (opening for
writing, making, renaming, removing); where ``at`` is 0 they are counted alone, and the number is printed at the end.
``{"on", "call", "delay", "signals"}``: at a call (1 is the first) of a function, written ``module:name``, and ``delay``
seconds later, the signals are sent 0.3 s apart. When the first was sent is printed, in seconds of the monotonic clock.
"""

from __future__ import annotations

import atexit
import importlib
import itertools
import json
import os
import signal
import sys
import threading
import time
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")
_APART = 0.3


def main() -> None:
    strike = json.loads(sys.argv[1])
    sys.argv[1:2] = []
    if "root" in strike:
        kill_at_operation(strike["root"], strike["at"])
    else:
        signal_at_call(**strike)
    from finetune.cli import main as finetune

    finetune()


def kill_at_operation(root: str, at: int) -> None:
    counter, reached = itertools.count(1), 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal reached
        if writes(event, arguments, root):
            reached = next(counter)
            if reached == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    atexit.register(lambda: print(f"operations: {reached}", flush=True))


def writes(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Whether an audit event is an operation that changes what is below a folder."""
    if event == "open":
        path, mode, flags = arguments
        if not (set("wax+") & set(mode) if isinstance(mode, str) else flags & _WRITES):
            return False
    elif event in _CHANGES:
        path = arguments[0]
        if event in ("os.remove", "os.rmdir") and arguments[-1] >= 0:
            return True  # within a folder that is open, as a tree is removed
    else:
        return False
    if isinstance(path, int):
        return False
    return os.path.abspath(os.fsdecode(path)).startswith(root + os.sep)


def signal_at_call(on: str, call: int, delay: float, signals: list[str]) -> None:
    module, _, name = on.partition(":")
    home = importlib.import_module(module)
    *parents, last = name.split(".")
    for parent in parents:
        home = getattr(home, parent)
    function, calls = getattr(home, last), itertools.count(1)

    def struck(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            threading.Thread(target=send, args=(delay, signals), daemon=True).start()
            if not delay:
                time.sleep(0.01)  # the first one is there
        return function(*args, **kwargs)

    setattr(home, last, struck)


def send(delay: float, signals: list[str]) -> None:
    time.sleep(delay)
    print(f"struck: {time.monotonic()}", flush=True)
    for name in signals:
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(_APART)


if __name__ == "__main__":
    main()
