"""The log of a run, ``metrics.jsonl``: one JSON object a line, in the order in which things were measured."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from finetune.errors import CheckpointError
from finetune.files import hash_bytes, json_text, written_atomically


class MetricsLog:
    """The log in a file, which need not exist yet."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def append(self, record: Mapping[str, Any]) -> None:
        with self._opened() as file:
            file.write((json_text(record) + "\n").encode())

    def records(self, sha256: str | None = None) -> list[dict[str, Any]]:
        """Everything that was logged.

        Args:
            sha256: of the file, where it is known.

        Raises:
            CheckpointError: the log is missing or damaged.
        """
        try:
            data = self.file.read_bytes()
            if sha256 not in (None, hash_bytes(data)):
                raise ValueError("it is not what the run wrote")
            return [json.loads(line) for line in data.decode().splitlines()]
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.file}: damaged: {error}") from None

    def cut(self, lines: int, sha256: str | None = None) -> bool:
        """Forgets what comes after so many lines; and all of them where they are not what was logged.

        Args:
            sha256: of the lines that stay, where it is known.

        Returns:
            Whether they stay.
        """
        kept = self._lines()[:lines]
        whole = sha256 in (None, hash_bytes(b"".join(kept)))
        if self.file.is_file():
            with written_atomically(self.file) as beside:
                beside.write_bytes(b"".join(kept) if whole else b"")
        return whole

    def extent(self) -> tuple[int, str]:
        """The number of lines, and their SHA-256."""
        lines = self._lines()
        return len(lines), hash_bytes(b"".join(lines))

    def _lines(self) -> list[bytes]:
        return self.file.read_bytes().splitlines(keepends=True) if self.file.is_file() else []

    def _opened(self) -> BinaryIO:
        """To write at its end: never through a link, nor into a copy that shares its bytes (``cp -al``)."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        try:
            descriptor = os.open(self.file, flags, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise CheckpointError(f"{self.file}: a link, and runs do not write through links; remove it") from None
        file = os.fdopen(descriptor, "ab")
        if os.fstat(descriptor).st_nlink < 2:
            return file
        file.close()
        with written_atomically(self.file) as beside:
            shutil.copyfile(self.file, beside)
        return self.file.open("ab")
