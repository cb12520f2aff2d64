"""Carries audit rows from the database's outbox into the audit files: each exactly once, in order.

A row is appended, synced, and only then dropped from the outbox. Killed in between, the file is ahead of the outbox;
the number of its last line then tells which rows it has already. When the file cannot be written, the rows stay where
they are, and `check` refuses every further change until they could be carried over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import sqlalchemy as sa
import trio

from capi_core.audit import AuditEntry, Link, encode_line, line_hash
from capi_trio.logs import get_logger
from capi_trio.storage import outbox
from capi_trio.storage.audit_log import AuditLog, Extent
from capi_trio.storage.database import Database
from capi_trio.storage.errors import AuditDiverged, AuditUnavailable, DatabaseError
from capi_trio.storage.lock import DirectoryLock
from capi_trio.storage.outbox import Head

__all__ = ["AuditWriter", "open_audit_writer"]

T = TypeVar("T")

_BATCH: Final = 256
_RETRY_S: Final = 1.0

_log = get_logger("audit")


class AuditWriter:
    """The one writer of the audit files of a data directory. Made by `open_audit_writer`."""

    def __init__(self, database: Database, log: AuditLog) -> None:
        self._database = database
        self._log = log
        self._failure: str | None = None
        self._draining = trio.Lock()
        self._file = trio.CapacityLimiter(1)
        self._wake = trio.Event()

    @property
    def failure(self) -> str | None:
        """Why changes are refused; `None` while the file can be written."""
        return self._failure

    def check(self) -> None:
        """Raises `AuditUnavailable` while a row waits that could not be written, and when the next one could not be."""
        if self._failure is not None:
            raise AuditUnavailable(self._failure)
        self._log.check()

    def notify(self) -> None:
        """Wakes `run`."""
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Writes rows as they come, until cancelled. A failure is logged, and tried again each second."""
        task_status.started()
        while True:
            self._wake = trio.Event()
            try:
                await self.drain()
            except (AuditUnavailable, DatabaseError) as error:
                _log.error("audit_not_written", reason=str(error))
                await trio.sleep(_RETRY_S)
            else:
                await self._wake.wait()

    async def drain(self) -> int:
        """Writes every row that waits now; returns how many lines that made. When it returns, they are on disk.

        Can be cancelled between batches: nothing is lost or written twice. Raises `AuditUnavailable`, `DatabaseError`.
        """
        async with self._draining:
            first = self._log.last.seq
            # Rows that come in the meantime are left to the next call: under steady changes this one must end too.
            end = (await self._database.read(self._head)).next_seq
            while entries := await self._database.read(self._pending):
                await self._in_thread(partial(self._append, entries))
                await self._database.clear_audit(self._log.last)
                if self._log.last.seq + 1 >= end:
                    break
            self._failure = None
            return self._log.last.seq - first

    async def prune(self, now_ms: int, keep_days: int) -> list[str]:
        """Removes the files older than `keep_days` days; returns their names. Raises `OSError`."""
        async with self._draining:
            removed = await self._in_thread(lambda: self._log.prune(now_ms, keep_days))
        return [path.name for path in removed]

    @asynccontextmanager
    async def at_rest(self) -> AsyncIterator[list[Extent]]:
        """Within, no line is written and no row leaves the outbox; changes go on. Gives the files and their sizes.

        A copy of the database made within and of the files up to these sizes belong together.
        """
        async with self._draining:
            yield await self._in_thread(self._log.extents)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._file)

    def _pending(self, connection: sa.Connection) -> list[AuditEntry]:
        return outbox.pending(connection, self._database.stream, _BATCH)

    def _head(self, connection: sa.Connection) -> Head:
        return outbox.head(connection, self._database.stream)

    def _append(self, entries: Sequence[AuditEntry]) -> None:
        try:
            self._log.append([entry for entry in entries if entry.seq > self._log.last.seq])
        except AuditUnavailable as error:
            self._failure = str(error)
            raise


@asynccontextmanager
async def open_audit_writer(
    database: Database, lock: DirectoryLock, *, accept_loss: bool = False
) -> AsyncIterator[AuditWriter]:
    """Opens the files in the locked directory, repairs their end, writes what waits, and lets changes be made.

    Files and database must belong together: `AuditDiverged` says how they do not, for example when one of them was
    restored alone. `accept_loss` goes on all the same: no row that waits is lost (one may appear twice), and
    `capi audit verify` will show the gap. Raises `AuditUnavailable`, `DatabaseError`, and `LocalError` when they are
    open already. At the end, what waits is written if it can be.
    """
    with lock.claim("audit log"):
        log = await trio.to_thread.run_sync(AuditLog, lock.directory)
        try:
            if log.repaired_bytes:
                _log.warning("audit_tail_repaired", bytes=log.repaired_bytes)
            await _reconcile(database, log, accept_loss=accept_loss)
            writer = AuditWriter(database, log)
            await writer.drain()
            database.attach(writer)
            try:
                yield writer
            finally:
                database.attach(None)
                await _last_drain(writer)
        finally:
            log.close()


async def _last_drain(writer: AuditWriter) -> None:
    # Shielded, so that a server that is told to end writes its last lines; bounded, since the rows are safe anyway.
    with trio.move_on_after(5, shield=True):
        try:
            await writer.drain()
        except (AuditUnavailable, DatabaseError) as error:
            _log.error("audit_not_written", reason=str(error))


async def _reconcile(database: Database, log: AuditLog, *, accept_loss: bool) -> None:
    def state(connection: sa.Connection) -> tuple[Head, list[AuditEntry]]:
        return outbox.head(connection, database.stream), outbox.pending(connection, database.stream, _BATCH)

    head, waiting = await database.read(state)
    fault = _divergence(head, waiting, log.last)
    if fault is None:
        return
    if not accept_loss:
        raise AuditDiverged(f"{log.directory}: {fault}")
    _log.warning("audit_loss_accepted", reason=fault)
    log.skip_to(max(head.written.seq, log.last.seq))
    await database.renumber_audit(log.last)


def _divergence(head: Head, waiting: Sequence[AuditEntry], last: Link) -> str | None:
    """How the last line in the files does not follow from the database; `None` when it does."""
    if last.seq < head.written.seq:
        return (
            f"the audit files end at line {last.seq}, but {head.written.seq} were written. Put the missing files back"
        )
    if last.seq >= head.next_seq:
        return (
            f"the audit files end at line {last.seq}, but the database knows of {head.next_seq - 1} changes: "
            "it is older than they are. Restore it from the same backup as they, or with its -wal file"
        )
    link = head.written
    for entry in waiting:
        if entry.seq > last.seq:
            break
        link = Link(entry.seq, line_hash(encode_line(entry, link.hash)))
    if link != last:
        return f"line {last.seq} of the audit files is not the one that was written. Run `capi audit verify`"
    return None
