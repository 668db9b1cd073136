"""Several processes of one program on this machine."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Several:
    """Started processes, with their output in files."""

    def __init__(self, commands: Sequence[Sequence[object]], folder: Path) -> None:
        self._files = [folder / f"{index}.txt" for index in range(len(commands))]
        self.processes = []
        for command, file in zip(commands, self._files, strict=True):
            with file.open("w") as output:
                self.processes.append(subprocess.Popen(list(map(str, command)), stdout=output, stderr=output))

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Until all have printed it."""
        end = time.monotonic() + seconds
        while not all(text in output for output in self.outputs()):
            assert time.monotonic() < end, self.outputs()
            time.sleep(0.05)

    def ends(self, seconds: float, but: Sequence[int] = ()) -> list[int]:
        """The exit codes; it fails where one goes on for longer."""
        end = time.monotonic() + seconds
        for index, process in enumerate(self.processes):
            if index not in but:
                process.wait(max(0.0, end - time.monotonic()))
        return [process.returncode for process in self.processes]

    def outputs(self) -> list[str]:
        return [file.read_text(errors="replace") for file in self._files]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
