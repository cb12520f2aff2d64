"""One process at a time owns a data directory.

SQLite before 3.51.3 can damage a database in WAL mode when two connections write or checkpoint it at once, and an
audit file has one writer. So whoever writes, the server or a command, holds `capi.lock` for as long as it does; a
command that finds it taken talks to the server instead. The kernel drops the lock with the process, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from capi_core.errors import LocalError
from capi_trio.storage.errors import DirectoryLocked, UnsafePath
from capi_trio.storage.files import open_private, prepare_directory

__all__ = ["LOCK_NAME", "DirectoryLock"]

LOCK_NAME: Final = "capi.lock"

_RETRY_S: Final = 0.02


class DirectoryLock:
    """The right to write into `directory`; held until `close()` or the end of a `with` block."""

    def __init__(self, directory: Path, descriptor: int) -> None:
        self.directory = directory
        self._descriptor = descriptor
        self._claims: set[str] = set()

    @classmethod
    def take(cls, directory: Path, *, timeout_s: float = 0.0) -> DirectoryLock:
        """Prepares the directory and takes its lock, waiting at most `timeout_s` seconds; blocks the thread.

        Raises `UnsafePath`, or `DirectoryLocked` that names the process which has it.
        """
        prepare_directory(directory)
        path = directory / LOCK_NAME
        try:
            descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise UnsafePath(f"{path} cannot be opened: {error.strerror}") from error
        try:
            _wait_for(descriptor, path, time.monotonic() + timeout_s)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(directory, descriptor)

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    @contextmanager
    def claim(self, what: str) -> Iterator[None]:
        """Within the process too, each part of the directory has one user at a time.

        Raises `LocalError` when the lock is not held, or `what` is claimed already.
        """
        if not self.held:
            raise LocalError(f"the lock of {self.directory} is not held")
        if what in self._claims:
            raise LocalError(f"the {what} in {self.directory} is open already")
        self._claims.add(what)
        try:
            yield
        finally:
            self._claims.discard(what)

    def close(self) -> None:
        """Gives the lock back. The file stays: to remove it would let two processes lock two files of one name."""
        if self.held:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _wait_for(descriptor: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise DirectoryLocked(f"{path.parent} is in use by process {holder}") from None
            time.sleep(_RETRY_S)
        else:
            return
