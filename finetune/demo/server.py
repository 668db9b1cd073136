"""The server of the page: one address, one way to end."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Callable, Iterator
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


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within, SIGINT (Ctrl-C) and SIGTERM raise :class:`Interrupted`, so that what is temporary is removed."""
    with _handling(_interrupt):
        yield


def serve(app: Any, listener: Listener) -> None:
    """Serves an ASGI app until one of these signals comes.

    Raises:
        Interrupted: at the end.
    """
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Uvicorn would send itself the signal again, which ends the process where it is."""
            yield

    server = Server(
        uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=_PATIENCE, ws="none")
    )
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        server.handle_exit(number, frame)  # a second SIGINT does not wait for open connections

    with _handling(stop):
        server.run(sockets=[listener.socket])
    _interrupt(received[0] if received else signal.SIGINT, None)


@contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _interrupt(number: int, frame: Any) -> None:
    raise Interrupted(f"ended by {signal.Signals(number).name}", number)
