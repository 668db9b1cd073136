"""One process at a time works on a run's folder: a file beside the folder says which.

``.NAME.lock`` is JSON: process, host, what it does and since when. A thread touches it while the process lives, so that
other hosts see that it does. It is read and written only under ``flock``, which the kernel ends however a process dies:
of two that come at once, also onto the lock of a dead process, the second sees what the first has written.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from finetune.errors import CheckpointError
from finetune.files import is_process

HEARTBEAT = 5.0  # seconds
STALE = 300.0  # seconds without a heartbeat after which a process of another host counts as dead
_PATIENCE = 10.0  # seconds to wait for one that reads or writes the file right now
_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@dataclass(frozen=True)
class Owner:
    """A process that works on a folder.

    Attributes:
        machine: host, its boot and its process namespace: where these are the same, process numbers mean the same.
        started: the process's start, as the kernel says it; another process of the same number has another.
        doing: in a word.
        since: ISO time.
        token: of this lock alone.
    """

    pid: int
    host: str
    machine: str
    started: str
    doing: str
    since: str
    token: str

    @classmethod
    def this_process(cls, doing: str) -> Self:
        pid, now = os.getpid(), datetime.now(UTC).isoformat(timespec="seconds")
        return cls(pid, socket.gethostname(), _machine(), _start_of(pid) or "", doing, now, uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.doing}, since {self.since})"


class FolderLock:
    """While entered, no other process that asks for it works on the folder.

    Raises:
        CheckpointError: on entering, where another one does.
    """

    def __init__(self, directory: Path, doing: str, say: Callable[[str], None] = lambda _: None) -> None:
        self.directory, self.file = directory, lock_file(directory)
        self._owner, self._say = Owner.this_process(doing), say
        self._made: list[Path] = []
        self._successor: Owner | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._made = _make_folder(self.file.parent)
        try:
            with _exclusive(self.file) as descriptor:
                owner = _read(descriptor)
                if owner is not None:
                    self._take_over(owner, descriptor)
                _write(descriptor, self._owner)
        except BaseException:
            self._remove_made()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        if os.getpid() != self._owner.pid:
            return  # a fork of the owner
        self._ended.set()
        self._thread.join()
        with suppress(OSError, CheckpointError), _exclusive(self.file, create=False) as descriptor:
            if _read(descriptor) == self._owner:
                self.file.unlink()
        self._remove_made()

    def check(self) -> None:
        """Raises:
        CheckpointError: another process has taken the folder over, as this one gave no sign of life for long.
        """
        if self._successor is not None:
            raise CheckpointError(
                f"{self.directory}: taken over by {self._successor}, as this process gave no sign of life for minutes; "
                "what was saved before is there"
            )

    def _take_over(self, owner: Owner, descriptor: int) -> None:
        """Raises:
        CheckpointError: the owner lives.
        """
        if owner.machine == _machine():
            if _is_alive(owner):
                raise self._in_use(owner, "wait until it ends")
        else:
            silent = _now(self.file.parent) - os.fstat(descriptor).st_mtime
            if silent < STALE:
                wait = f"last seen {max(silent, 0):.0f} seconds ago: after {STALE:.0f} it would count as dead"
                raise self._in_use(owner, wait)
        self._say(f"{self.directory}: taken over from {owner}, which has ended without unlocking it")

    def _in_use(self, owner: Owner, advice: str) -> CheckpointError:
        return CheckpointError(
            f"{self.directory}: in use by {owner}; {advice}, or choose another folder with --output ({self.file})"
        )

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            with suppress(OSError, CheckpointError), _exclusive(self.file) as descriptor:
                owner = _read(descriptor)
                if owner == self._owner:
                    os.utime(descriptor)
                elif owner is None:  # somebody removed the file
                    _write(descriptor, self._owner)
                else:
                    self._successor = owner
                    return

    def _remove_made(self) -> None:
        """The parents that were made for the lock, where nothing else has come into them."""
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()


def lock_file(directory: Path) -> Path:
    """Where the lock of a folder is, by whatever path that is reached: beside it, or in it where it cannot be."""
    place = locate(directory)
    if place.is_dir() and is_fixed(place):
        return place / ".lock"
    return place.with_name(f".{place.name}.lock")


def locate(directory: Path) -> Path:
    """The absolute path of a folder, without links on the way to it."""
    path = directory.absolute()
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def is_fixed(place: Path) -> bool:
    """Whether a folder cannot be moved: it is a mount point, or the folder around it cannot be written to."""
    return os.path.ismount(place) or not os.access(place.parent, os.W_OK | os.X_OK)


@contextmanager
def _exclusive(file: Path, *, create: bool = True) -> Iterator[int]:
    """The file, open, for this process and thread alone.

    Raises:
        CheckpointError: it is a link or no ordinary file, or another process keeps it.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        try:
            descriptor = os.open(file, flags, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise CheckpointError(f"{file}: a link, and links are not followed; remove it") from None
            raise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CheckpointError(f"{file}: not an ordinary file; remove it")
            if _flock(descriptor) and _is_at(descriptor, file):
                yield descriptor
                return
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process forked meanwhile may have it open for long
            os.close(descriptor)
        if time.monotonic() > deadline:
            raise CheckpointError(f"{file}: another process keeps it locked; end that, then try again")
        time.sleep(0.01)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_FLOCK:  # a file system without it has the owner's name alone
            raise
    return True


def _is_at(descriptor: int, file: Path) -> bool:
    """Whether it was not removed since it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> Owner | None:
    """None where nobody has written, or one who died while writing."""
    try:
        owner = Owner(**json.loads(os.pread(descriptor, 65536, 0)))
    except (ValueError, TypeError, RecursionError):
        return None
    return owner if isinstance(owner.pid, int) and owner.pid > 0 else None


def _write(descriptor: int, owner: Owner) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(owner), indent=1).encode() + b"\n", 0)


def _make_folder(folder: Path) -> list[Path]:
    """Makes a folder and its parents; those made, the innermost first."""
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _now(folder: Path) -> float:
    """The time by the clock that dates a folder's files, which may be another host's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def _machine() -> str:
    parts: list[Any] = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _is_alive(owner: Owner) -> bool:
    started = _start_of(owner.pid)
    return started is not None and (not started or not owner.started or started == owner.started)


def _start_of(pid: int) -> str | None:
    """When a process of this machine started; an empty string where that is not told, None without the process."""
    if not is_process(pid):
        return None
    if not Path("/proc/self/stat").exists():
        asked = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return asked.stdout.strip()
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()  # a zombie has ended
