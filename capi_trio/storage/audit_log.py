"""The audit files as this process appends to them: `audit-YYYY-MM-DD.jsonl` in the data directory.

A line counts as written once it was synced. What a crash or a full disk left of a line is cut off before the next one
is written: at opening by what the file holds, after a failed write by what was known to be whole. A failed sync is
never tried again on the same pages, since the kernel may have dropped them: they are cut off and written anew.

An entry goes to the file of its own date, but never to one older than the newest there is: the chain runs through the
files in the order of their names, also when the clock is set back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Final

from attrs import frozen

from capi_core.audit import (
    MAX_LINE_BYTES,
    START,
    AuditEntry,
    Link,
    day_of,
    encode_line,
    file_name,
    line_hash,
    link_of,
    repair_tail,
)
from capi_trio.storage.errors import AuditDiverged, AuditUnavailable, UnsafePath
from capi_trio.storage.files import open_private, sync_directory

__all__ = ["AuditLog", "Extent", "audit_files", "read_lines"]

_FREE_BYTES: Final = 1024 * 1024  # a batch of the audit writer fits
_TAIL_BYTES: Final = 2 * MAX_LINE_BYTES


@frozen
class Extent:
    """A file, and how many bytes of it are whole, synced lines."""

    path: Path
    size: int


def audit_files(directory: Path) -> list[Path]:
    """The audit files, oldest first. Raises `OSError`."""
    return sorted(directory / name for name in os.listdir(directory) if day_of(name) is not None)


def read_lines(directory: Path) -> Iterator[bytes]:
    """All lines of all files in the order of the chain, each with its end if it has one.

    Raises `OSError`, `UnsafePath`.
    """
    for path in audit_files(directory):
        with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
            yield from file


class AuditLog:
    """The newest file, open for appending. Used by one thread at a time, except `check`."""

    def __init__(self, directory: Path) -> None:
        """Opens the newest file and repairs its end. Raises `AuditUnavailable`."""
        self.directory = directory
        self.last = START
        """The last line that is written and synced; the next one follows it."""
        self.repaired_bytes = 0
        """How much of an unfinished line was cut off at opening."""
        self._path: Path | None = None
        self._descriptor = -1
        self._size = 0
        self._unsure = False
        self._name_synced = True
        try:
            self._open_newest()
        except (OSError, UnsafePath) as error:
            self.close()
            raise _unavailable(directory, error) from error
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Raises `AuditUnavailable` when it can be foreseen that a line could not be written now."""
        try:
            disk = os.statvfs(self.directory)
            if disk.f_flag & os.ST_RDONLY:
                raise AuditUnavailable(f"{self.directory}: the disk is read-only")
            if disk.f_bavail * disk.f_frsize < _FREE_BYTES:
                raise AuditUnavailable(f"{self.directory}: the disk has less than {_FREE_BYTES} free bytes")
            if not os.access(self.directory, os.W_OK | os.X_OK):
                raise AuditUnavailable(f"{self.directory}: no file can be made here")
        except OSError as error:
            raise _unavailable(self.directory, error) from error

    def append(self, entries: Sequence[AuditEntry]) -> None:
        """Writes one line for each entry and syncs. `last` says how far it got, also when it raises.

        Raises `AuditUnavailable`; `AuditDiverged` when another program has changed the file, or a number is not the
        next one.
        """
        for name, group in groupby(entries, self._name_for):
            lines, last = bytearray(), self.last
            for entry in group:
                if entry.seq != last.seq + 1:
                    raise AuditDiverged(f"{self.directory}: line {last.seq} is followed by {entry.seq} in the database")
                line = encode_line(entry, last.hash)
                last = Link(entry.seq, line_hash(line))
                lines += line
            try:
                self._append(self.directory / name, bytes(lines))
            except (OSError, UnsafePath) as error:
                raise _unavailable(self._path or self.directory, error) from error
            self.last = last

    def skip_to(self, seq: int) -> None:
        """The next line has the number after `seq`: lines before it were lost, and `verify` will say so."""
        self.last = Link(seq, self.last.hash)

    def extents(self) -> list[Extent]:
        """All files as far as they are written: a copy up to there is whole, whatever is appended meanwhile."""
        return [
            Extent(path, self._size if path == self._path else path.stat().st_size)
            for path in audit_files(self.directory)
        ]

    def prune(self, now_ms: int, keep_days: int) -> list[Path]:
        """Removes the files that end more than `keep_days` days ago, never the newest. Raises `OSError`."""
        today = day_of(file_name(now_ms))
        removed = []
        for path in audit_files(self.directory)[:-1]:
            day = day_of(path.name)
            if day is not None and today is not None and day < today - timedelta(days=keep_days):
                path.unlink()
                removed.append(path)
        if removed:
            sync_directory(self.directory)
        return removed

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open_newest(self) -> None:
        files = audit_files(self.directory)
        if files:
            self._use(files[-1], os.O_RDWR)
            self._repair()
        for path in reversed(files):
            line = self._last_line(path)
            if line:
                link = link_of(line)
                if link is None:
                    raise AuditDiverged(f"{path}: the last line is damaged. Run `capi audit verify`")
                self.last = link
                return

    def _repair(self) -> None:
        end = os.fstat(self._descriptor).st_size
        start = max(0, end - _TAIL_BYTES)
        whole = repair_tail(os.pread(self._descriptor, end - start, start))
        if whole == 0 and start > 0:
            # The damaged end is longer than any line: blocks that never reached the disk. Look at all of it.
            start, whole = 0, repair_tail(os.pread(self._descriptor, end, 0))
        self._size = start + whole
        self.repaired_bytes = end - self._size
        if self.repaired_bytes:
            os.ftruncate(self._descriptor, self._size)
        # What is there may be from a process that died before it could sync it.
        os.fsync(self._descriptor)

    def _last_line(self, path: Path) -> bytes:
        with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TAIL_BYTES))
            lines = file.read().splitlines(keepends=True)
        return lines[-1] if lines else b""

    def _name_for(self, entry: AuditEntry) -> str:
        name = file_name(entry.ts)
        return name if self._path is None else max(name, self._path.name)

    def _append(self, path: Path, data: bytes) -> None:
        if path != self._path:
            self._use(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            self._name_synced = False
        if not self._name_synced:
            sync_directory(self.directory)
            self._name_synced = True
        if self._unsure:
            os.ftruncate(self._descriptor, self._size)
        self._refuse_foreign_changes()
        self._unsure = True
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        os.fsync(self._descriptor)
        self._unsure = False
        self._size += len(data)

    def _use(self, path: Path, flags: int) -> None:
        descriptor = open_private(path, flags | os.O_APPEND)
        self.close()
        self._path, self._descriptor, self._size, self._unsure = path, descriptor, 0, False

    def _refuse_foreign_changes(self) -> None:
        found = os.fstat(self._descriptor)
        if found.st_nlink == 0:
            raise AuditDiverged(f"{self._path} was removed while capi had it open. Put it back, then restart capi")
        if found.st_size != self._size:
            raise AuditDiverged(f"{self._path} was changed by another program. Run `capi audit verify`")


def _unavailable(path: Path, error: OSError | UnsafePath) -> AuditUnavailable:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return AuditUnavailable(f"{path}: the audit file cannot be written: {reason}")
