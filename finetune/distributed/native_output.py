"""What C++ libraries write past Python, without that of JAX's runtime about other processes."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_LOG = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ (\w+)\.\w+:\d+\] (.*)")
_ABOUT_PROCESSES = re.compile(rb"coordination_\w+|client|preemption_\w+|distributed_\w+")  # source files of XLA
_CONTINUED = re.compile(  # lines of theirs after the first one
    rb"\s*$|\d+\s*$|\s+@ +0x|\*\*\* Check failure|RPC: /|Additional GRPC error|:UNKNOWN:|Barrier result|"
    rb"This suggests that the workers|The tasks have crashed|\[type\.googleapis"
)
_GLOO = re.compile(  # nothing but the parts of its line: threads that each write one mix them
    rb"(\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of connected peer ranks is : |\d+|\s)+"
)
_FATAL = b"JAX distributed service detected fatal errors"


@contextmanager
def native_output_filtered(fatal: Callable[[], None]) -> Iterator[None]:
    """Passes on what is written to the descriptors of stdout and stderr, but for what the runtime logs about processes.

    Python's own output does not go through it. Where a library aborts the process, it waits for six seconds first, in
    which another thread can say why.

    Args:
        fatal: is called, by a thread of its own, where JAX is about to abort since it has lost another process.
    """
    with _filtered(1, "stdout", fatal), _filtered(2, "stderr", fatal), _abort_delayed():
        yield


@contextmanager
def _filtered(descriptor: int, stream: str, fatal: Callable[[], None]) -> Iterator[None]:
    before = getattr(sys, stream)
    before.flush()
    real = os.dup(descriptor)
    read, write = os.pipe()
    os.dup2(write, descriptor)
    os.close(write)
    of_python = os.fdopen(real, "w", buffering=1, encoding=before.encoding, errors="replace", closefd=False)
    setattr(sys, stream, of_python)
    thread = threading.Thread(target=_pass_on, args=(read, real, fatal), name=f"native {stream}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            of_python.flush()
        setattr(sys, stream, before)
        os.dup2(real, descriptor)  # the pipe's last end here: the thread reads its rest
        thread.join(1.0)  # a process that was started meanwhile may hold another


def _pass_on(read: int, real: int, fatal: Callable[[], None]) -> None:
    ours = gloos = False  # the line before was left out
    with open(read, "rb") as lines:
        for line in lines:
            gloos = bool(_GLOO.fullmatch(line)) and (gloos or b"[Gloo]" in line)
            if gloos:
                continue
            if match := _LOG.match(line):
                ours = bool(_ABOUT_PROCESSES.fullmatch(match[1]))
                if _FATAL in line:
                    threading.Thread(target=fatal, daemon=True).start()
            else:
                ours = ours and bool(_CONTINUED.match(line))
            if not ours:
                with suppress(OSError):
                    os.write(real, line)


@contextmanager
def _abort_delayed() -> Iterator[None]:
    """``abort()`` calls its handler with its signal's number, 6. The handler is ``sleep``: Python's could not run."""
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    before = library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))
    try:
        yield
    finally:
        library.signal(signal.SIGABRT, before)
