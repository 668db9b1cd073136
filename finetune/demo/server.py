"""The server of the page: one address, one way to end."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from finetune.errors import Interrupted, MachineError, RecipeError

_PATIENCE = 1  # seconds that open connections are given at the end
_WAITING = 128  # connections, while the model is loaded
_EVERY_ADDRESS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Listener:
    """A socket on which the page will be served.

    Attributes:
        url: under which a browser finds it.
    """

    socket: socket.socket
    url: str


@contextmanager
def bound_to(host: str, port: int) -> Iterator[Listener]:
    """A socket that is open from now on, so that no other program takes the port while the model is loaded.

    Args:
        port: 0 for one that is free.

    Raises:
        RecipeError: the host is no address of this machine.
        MachineError: the port is taken, or this user may not have it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError):
        raise RecipeError(f"--host: {host!r} is no address; give one of this machine, such as 127.0.0.1") from None
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the last one may just have ended
        try:
            listening.bind(address)
            listening.listen(_WAITING)
        except OSError as error:
            raise _explain(error, host, port) from None
        name = socket.gethostname() if host in _EVERY_ADDRESS else f"[{host}]" if ":" in host else host
        yield Listener(listening, f"http://{name}:{listening.getsockname()[1]}")


def _explain(error: OSError, host: str, port: int) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return MachineError(f"--port: {port} is taken by another program; end it, or choose another: --port {port + 1}")
    if error.errno == errno.EACCES:
        return MachineError(f"--port: {port} is not for this user; choose one from 1024: --port 7860")
    return RecipeError(f"--host: {host} is no address of this machine; give one that is, such as 127.0.0.1")


def serve(app: Any, listener: Listener) -> None:
    """Serves an ASGI app until a signal comes.

    Raises:
        Interrupted: always; by SIGINT, which Ctrl-C sends, or SIGTERM.
    """
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """The caller says how the process ends; Uvicorn would send itself the signal again."""
            yield

    server = Server(
        uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=_PATIENCE, ws="none")
    )
    received = signal.SIGINT

    def stop(number: int, frame: Any) -> None:
        nonlocal received
        received = signal.Signals(number)
        server.handle_exit(number, frame)  # a second SIGINT does not wait for open connections

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener.socket])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    raise Interrupted(f"ended by {received.name}", received)
