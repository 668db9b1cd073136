"""Stopping a run politely: a signal is remembered, and the run acts on it at the next place where it can be taken up
again."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from finetune.errors import Interrupted

_PATIENCE = 7.0  # seconds that a computation may go on before the process ends without it
_NUMBERS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
_END = b"\0"  # no signal has this number
_owned = False


def own_process() -> None:
    """Says that this process is the command line's: a signal may end it, where a long computation would not."""
    global _owned
    _owned = True


def owns_process() -> bool:
    """Whether this process is the command line's."""
    return _owned


class StopSignal:
    """While entered, the first SIGTERM, SIGINT or SIGHUP only sets ``received``; a second one stops at once.

    A process of the command line's ends by itself where it does not get to a place to stop at, as while a large model
    is compiled: what was saved is whole at all times.

    Attributes:
        received: the signal; None before there is one.
        busy: whether something is being saved, which that waits for.
        at_end: called before the process ends by itself; gives what to say.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.busy: Callable[[], bool] = lambda: False
        self.at_end: Callable[[], str] = lambda: "stopped"
        self._before: dict[signal.Signals, Any] = {}
        self._watcher: _Watcher | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in _NUMBERS:
                if number is signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                    self._before[number] = signal.signal(number, self._note)
            if _owned:
                self._watcher = _Watcher(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.close()
        self._restore()

    def check(self, when: str) -> None:
        """Raises Interrupted if a signal has come; ``when`` is for its message."""
        if self.received is not None:
            raise Interrupted(f"{self.received.name} {when}", self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.take(number)
        self._restore()

    def take(self, number: int) -> None:
        self.received = signal.Signals(number)
        _say("stopping at the next safe point; once more stops at once")

    def _restore(self) -> None:
        """A process of the command line's own leaves the second signal to the system, which ends it at once."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if self.received and _owned else handler)
        self._before = {}


class _Watcher:
    """A thread that hears of signals while the main thread is inside a computation, where no handler runs."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        os.write(self._write, _END)
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _watch(self) -> None:
        first = self._next(None)
        if first is None:
            return
        if self._stop.received is None:
            self._stop.take(first)
        second = self._next(time.monotonic() + _PATIENCE)
        while second is not None and not second and self._stop.busy():
            second = self._next(time.monotonic() + 0.1)
        if second is not None:
            self._leave(first, at_once=bool(second))

    def _next(self, until: float | None) -> int | None:
        """The next of our signals; 0 where none comes in time, and None at the end."""
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._read], [], [], left)[0]:
                return 0
            byte = os.read(self._read, 1)
            if byte == _END:
                return None
            if byte[0] in _NUMBERS:
                return byte[0]

    def _leave(self, number: int, *, at_once: bool) -> None:
        if not at_once:
            _say(self._stop.at_end())
        os._exit(128 + number)


def _say(text: str) -> None:
    """To where Python writes errors, past its buffer, which the main thread may be using."""
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        descriptor = 2
    os.write(descriptor, f"{text}\n".encode(errors="replace"))
