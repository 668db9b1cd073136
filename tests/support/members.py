"""A run of several real processes on this machine."""

import os
import socket
import subprocess
from pathlib import Path

from command_line import FINETUNE


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(count: int, devices: int, *arguments, cwd: Path | None = None) -> list[subprocess.Popen]:
    """``finetune run`` in ``count`` processes of so many simulated devices each."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags}
    place = f"127.0.0.1:{free_port()}"
    joined = ("--coordinator", place, "--num-processes", str(count))
    return [
        subprocess.Popen(
            [*FINETUNE, "run", *map(str, arguments), *((*joined, "--process-id", str(index)) if count > 1 else ())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=cwd,
        )
        for index in range(count)
    ]


def finish(processes: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    results = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=timeout)
            results.append((process.returncode, out, err))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return results
