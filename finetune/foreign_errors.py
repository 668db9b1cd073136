"""Errors of the system and of other libraries in our words: the one place that knows them.

What a user can mend gets its advice; all else passes as it is, so that a mistake of this program keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from finetune.errors import FinetuneError, MachineError, ProcessLost, first_line

LESS_MEMORY = (
    "use less: a smaller batch_size, with grad_accum_steps to make up for it; remat: true; compute_dtype: bfloat16; "
    "or a smaller image_size"
)
# How the libraries beneath JAX say that a process of several is gone.
_LOST = re.compile(
    r"Gloo \w+ failed|gloo/|NCCL .*(remote|abort|peer)|ncclRemoteError|coordination.?service|Barrier failed|"
    r"heartbeat timeout|task is set to ERROR",
    re.IGNORECASE,
)
_ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room: the quota is used up",
    errno.EFBIG: "make room for larger files (ulimit -f)",
    errno.EACCES: "allow this user to read and write there, or choose another folder",
    errno.EPERM: "allow this user to read and write there, or choose another folder",
    errno.EROFS: "the disk can only be read: choose a folder on another",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs: the system has no more open files to give",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the disk fails: choose a folder on another",
    errno.ENOENT: "look whether the folder was moved or deleted",
    errno.ENOMEM: "close other programs: the system has no more memory to give",
    errno.ELOOP: "a link leads to itself: remove it",
}


@contextmanager
def foreign_errors_translated() -> Iterator[None]:
    """Raises those errors of the system and of other libraries that a user can mend as :class:`MachineError`.

    All others pass as they are: a mistake of this program keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        if (ours := translate(error)) is None:
            raise
        raise ours from error


def translate(error: BaseException) -> MachineError | None:
    """A foreign error that says what the machine lacks, in our words; None for every other one."""
    if isinstance(error, FinetuneError):
        return None
    if is_out_of_memory(error):
        return MachineError(f"out of memory: {first_line(error)}; {LESS_MEMORY}")
    if is_of_lost_process(error):
        return ProcessLost(
            f"another process of the run has ended, or its connection broke: {first_line(error)}; what was saved is "
            "whole: start all processes again with --resume"
        )
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if frames and frames[-1] == "jax._src.xla_bridge" and isinstance(error, RuntimeError | AssertionError):
        return MachineError(_describe_missing_backend(error))
    if isinstance(error, RecursionError) and not frames[-1].startswith("finetune"):
        return MachineError(f"nested too deeply for {frames[-1].split('.')[0]}: give something flatter")
    of_a_library = type(error).__module__ != "builtins"
    if not (isinstance(error, OSError) or of_a_library) or (number := _system_error(error)) is None:
        return None
    where = f"{name}: " if (name := getattr(error, "filename", None)) is not None else ""
    what = getattr(error, "strerror", None) or first_line(error)
    return MachineError(f"{where}{what}" + (f"; {_ADVICE[number]}" if number in _ADVICE else ""))


def advice_for(error: BaseException) -> str:
    """What to do where something cannot be written: "make room" only for a full disk.

    Args:
        error: of the system, or of a library that names the system's in its text or as its cause.
    """
    seen: BaseException | None = error
    while seen is not None:
        if is_out_of_memory(seen):
            return LESS_MEMORY
        if (number := _system_error(seen)) in _ADVICE:
            return _ADVICE[number]
        seen = seen.__cause__ or seen.__context__
    return "mend what it says"


def _system_error(error: BaseException) -> int | None:
    """The number of the system's error behind one; libraries written in C++ or Rust have it in their text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    return next((number for number in _ADVICE if os.strerror(number) in text or f"os error {number}" in text), None)


def is_of_lost_process(error: BaseException) -> bool:
    """Whether an error of JAX, or of ours that repeats it, comes from the end of another process of the run."""
    of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError", "ValueError", "RuntimeError")
    return (of_jax or isinstance(error, FinetuneError)) and bool(_LOST.search(str(error)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host's or a device's memory was not enough."""
    if isinstance(error, MemoryError):
        return True
    of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return of_jax and ("RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower())


def _describe_missing_backend(error: BaseException) -> str:
    from importlib.metadata import entry_points

    names = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
    asked = ", ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
    plugins = sorted(plugin.name for plugin in entry_points(group="jax_plugins"))
    reason = f": {first_line(error).partition(' (set JAX_')[0].rstrip('.')}" if str(error) else ""
    return (
        f"JAX cannot start the backend that it is asked for ({asked or 'none in particular'}){reason}; installed here: "
        f"{', '.join(['cpu', *plugins])}; leave the variable out, or set JAX_PLATFORMS=cpu; for NVIDIA GPUs: "
        "pip install 'flax-finetune[gpu]'"
    )
