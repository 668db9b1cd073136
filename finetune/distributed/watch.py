"""The end of one process of a run is the end of all, soon and with one message.

A collective waits for every process. Where one is gone, JAX notices after minutes or not at all, and ends the others
with ``abort()``. So each process has a connection to process 0, which the kernel ends with the process, however that
ends. A process that hangs is left to JAX's heartbeats.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from finetune.distributed.connection import Connection
from finetune.errors import ProcessLost, listed

_TOGETHER = 0.3  # seconds within which others that end are named in the same message
_GRACE = 2.0  # seconds for the main thread to end the process, where another's end reaches it as an error
_LEAVING = 10.0  # seconds that process 0, which holds JAX's service, lets the others end first
_KILLED = "killed, or its machine or connection is gone"
_ADVICE = "What was saved is whole: start all processes again with --resume, as many as you like"


class Watch:
    """What a process knows of the others.

    Attributes:
        at_end: is called before the process is ended by this one's thread.
    """

    def __init__(self, index: int, count: int, connections: dict[int, Connection]) -> None:
        """
        Args:
            connections: of process 0 to every other one, of each other one to process 0.
        """
        self._index, self._count = index, count
        self._hub: _Hub | None = None
        if index == 0:
            ours, theirs = socket.socketpair()
            self._hub = _Hub({0: Connection(theirs), **connections})
            self._to_hub = Connection(ours)
        else:
            self._to_hub = connections[0]
        self.at_end: Callable[[], object] = lambda: None
        self._lost: str | None = None
        self._told = threading.Event()  # that all have finished, or that one is lost
        self._leaving = threading.Event()  # the main thread ends the process
        self._speaking = threading.Lock()
        threading.Thread(target=self._listen, name="other processes", daemon=True).start()

    def finish(self, timeout: float | None = None) -> None:
        """Says that this process has done its part, and waits until all have.

        Args:
            timeout: seconds; None waits as long as the others are there.

        Raises:
            ProcessLost: another one has ended without that.
        """
        self._to_hub.send("finished")
        self._told.wait(timeout)
        if (lost := self.lost(within=0.0)) is not None:
            raise lost

    def fail(self, reason: str) -> None:
        """Says that this process ends, and why. Process 0 returns when the others have ended."""
        self._claim()
        self._to_hub.send({"ended": reason})
        self._let_others_end(_LEAVING)

    def lost(self, within: float) -> ProcessLost | None:
        """The end of another process, where there is word of it in time; this process's is then the caller's.

        Args:
            within: seconds.
        """
        if not self._told.wait(within) or self._lost is None:
            return None
        self._claim()
        self._let_others_end(_LEAVING)
        return ProcessLost(self._lost)

    def unresponsive(self) -> None:
        """JAX has missed the heartbeats of a process, or does not reach its service any more, and is about to abort."""
        if not self._told.wait(2 * _TOGETHER):  # one that ended is better known by its connection
            message = f"A process of {self._count} does not answer any more: it hangs, or cannot be reached. {_ADVICE}"
            self._lose(message, abort_is_near=True)

    def _listen(self) -> None:
        while self._to_hub.open:
            self._to_hub.socket.settimeout(None)
            with suppress(ValueError):
                for message in self._to_hub.receive():
                    if message == "all finished":
                        self._told.set()
                        return
                    self._lose(self._describe({int(index): reason for index, reason in message["ended"].items()}))
                    return
        self._lose(self._describe({0: _KILLED}))

    def _lose(self, message: str, abort_is_near: bool = False) -> None:
        self._lost = message
        self._told.set()
        if self._leaving.wait(0.0 if abort_is_near else _GRACE):
            return
        with self._speaking:
            if self._leaving.is_set():
                return
            with suppress(OSError, ValueError):
                print(f"error: {message}", file=sys.stderr, flush=True)
            with suppress(Exception):
                self.at_end()
            self._let_others_end(_GRACE if abort_is_near else _LEAVING)
            os._exit(ProcessLost.exit_code)

    def _claim(self) -> None:
        with self._speaking:  # for ever, where the thread already ends the process
            self._leaving.set()

    def _let_others_end(self, within: float) -> None:
        if self._hub is not None:
            self._hub.wait_for_others(within)

    def _describe(self, ended: dict[int, str]) -> str:
        if len(reasons := set(ended.values())) == 1 or len(ended) == 1:
            names = listed([str(index) for index in sorted(ended)])
            what = f"Process{'es' if len(ended) > 1 else ''} {names} of {self._count} ended: {reasons.pop()}"
        else:
            each = [f"{index}: {reason}" for index, reason in sorted(ended.items())]
            what = f"{len(ended)} of {self._count} processes ended: {listed(each)}"
        return f"{what}. {_ADVICE}" if _KILLED in ended.values() else what  # an error says by itself what to do


class _Hub:
    """Process 0's: it hears of every process, itself too, and tells all."""

    def __init__(self, members: dict[int, Connection]) -> None:
        self._members = members
        self._finished: set[int] = set()
        self._ended: dict[int, str] = {}  # process: why
        self._told = False
        self._alone = threading.Event()
        threading.Thread(target=self._run, name="end of processes", daemon=True).start()

    def wait_for_others(self, timeout: float) -> None:
        self._alone.wait(timeout)

    def _run(self) -> None:
        tell_at: float | None = None
        with selectors.DefaultSelector() as selector:
            for index, member in self._members.items():
                selector.register(member.socket, selectors.EVENT_READ, index)
            while not (self._told and all(not member.open for index, member in self._members.items() if index)):
                for key, _ in selector.select(None if tell_at is None else max(0.0, tell_at - time.monotonic())):
                    self._hear(key.data)
                    if not self._members[key.data].open:
                        selector.unregister(key.fileobj)
                if self._told:
                    continue
                if self._ended:
                    tell_at = tell_at or time.monotonic() + _TOGETHER
                    if time.monotonic() >= tell_at:
                        self._tell({"ended": self._ended})
                        tell_at = None
                elif len(self._finished) == len(self._members):
                    self._tell("all finished")
        self._alone.set()

    def _hear(self, index: int) -> None:
        member = self._members[index]
        try:
            messages = member.receive()
        except ValueError:  # from something else than a process of ours
            return
        for message in messages:
            if message == "finished":
                self._finished.add(index)
            else:
                self._ended[index] = str(message["ended"])
        if not member.open and index not in self._finished:
            self._ended.setdefault(index, _KILLED)

    def _tell(self, message: Any) -> None:
        self._told = True
        for member in self._members.values():
            member.send(message)
