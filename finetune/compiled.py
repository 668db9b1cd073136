"""Compiled programs, kept on the disk between processes: JAX's persistent compilation cache.

Programs from the cache are executed, so the folder has to be the user's own, and every file in it is under a digest:
JAX's compression notices damage on some versions of Python only.
"""

from __future__ import annotations

import json
import os
import platform
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

from finetune.files import cache_folder, hash_bytes, write_json

MAX_BYTES = 1 << 30  # of all programs, when a process starts; those that were written first go first
_PROGRAMS = "*-cache"
_DIGESTS = "digests.json"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def keep_compiled_programs() -> None:
    """From now on this process reads compiled programs from the cache folder, and writes those it compiles there.

    Where the user has set JAX's own options (``JAX_COMPILATION_CACHE_DIR``, ``JAX_ENABLE_COMPILATION_CACHE=false``),
    these hold. Without a folder of the user's own that can be written, programs are compiled as if there were no cache.
    """
    import jax

    options = jax.config.values
    if options["jax_compilation_cache_dir"] or not options["jax_enable_compilation_cache"]:
        return
    folder = cache_folder() / "compiled" / _machine()
    try:
        _prepare(folder)
    except OSError:
        return
    # What it says of a file that it cannot read or write is of no use to anyone: it compiles the program.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _machine() -> str:
    """Of machines that share a home folder, each has its own: a CPU's programs use all the instructions it has."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return f"{platform.machine()}-{hash_bytes(line.encode())[:12]}"
    return f"{platform.machine()}-{hash_bytes(platform.processor().encode())[:12]}"


def _prepare(folder: Path) -> None:
    """Makes the folder, or leaves of it what is whole and fits.

    Raises:
        OSError: it cannot be written, or others can write it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder}: others can write it")
    known, digests, room = _read_digests(folder / _DIGESTS), {}, MAX_BYTES
    for path in sorted(folder.glob(_PROGRAMS), key=_written, reverse=True):
        with suppress(OSError):  # such as that another process has just removed it
            data = path.read_bytes()
            digest = hash_bytes(data)
            room -= len(data)
            if room < 0 or (known[path.name] != digest if path.name in known else not _is_whole(data)):
                path.unlink()
            else:
                digests[path.name] = digest
    write_json(folder / _DIGESTS, digests)


def _written(path: Path) -> float:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _read_digests(path: Path) -> dict[str, str]:
    """Of what earlier processes found whole; nothing where that is damaged."""
    with suppress(OSError, ValueError):
        digests = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(digests, dict):
            return digests
    return {}


def _is_whole(data: bytes) -> bool:
    """Whether a new file was written to its end: a process may have been killed meanwhile."""
    with suppress(zlib.error):
        zlib.decompress(data)
        return True
    return data.startswith(_ZSTANDARD)  # which JAX uses where Python has it; that notices itself where a file ends
