"""A connection to another process of the run: lines of JSON."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from typing import Any

_PATIENCE = 10.0  # seconds that sending may take
_LONGEST = 64 * 1024  # bytes of a line


class Connection:
    """What two processes tell each other.

    Attributes:
        open: whether the other end was still there when it was last looked at.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(_PATIENCE)
        with suppress(OSError):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self.open = True
        self._received = b""

    def send(self, message: Any) -> None:
        """Sends JSON; nothing where the other end is gone."""
        with suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Any]:
        """The messages that have come, once the socket is readable; none, and ``open`` is false, at the end.

        Raises:
            ValueError: what came is not JSON.
        """
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return []
        except OSError:
            data = b""
        self.open = bool(data)
        *lines, self._received = (self._received + data).split(b"\n")
        if len(self._received) > _LONGEST:
            raise ValueError("a line without end")
        return [json.loads(line) for line in lines]

    def receive_one(self, timeout: float) -> Any:
        """The next message, where no others come before it is answered; None where none comes.

        Args:
            timeout: seconds.
        """
        deadline = time.monotonic() + timeout
        while self.open and (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if messages := self.receive():
                    return messages[0]
            except ValueError:
                return None
        return None

    def is_alive(self) -> bool:
        """Whether the other end is there, without reading what it sent."""
        self.socket.setblocking(False)
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self.socket.settimeout(_PATIENCE)

    def close(self) -> None:
        self.open = False
        self.socket.close()
