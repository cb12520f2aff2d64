"""The database as the rest of capi sees it: reads, and changes that cannot lack an audit row.

All work runs in worker threads, so nothing here holds up the event loop. One thread at a time writes. A call that
waits for its turn can be cancelled; one whose work has begun cannot: it runs to its end and its result is returned,
so that no caller is left not knowing whether a change was made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import sqlalchemy as sa
import trio
from attrs import Attribute, field, frozen
from sqlalchemy import exc

from capi_core.audit import AuditDraft, Link
from capi_core.errors import LocalError
from capi_trio.logs import get_logger
from capi_trio.storage import outbox, postgres, sqlite
from capi_trio.storage.errors import CommitUnknown, translated
from capi_trio.storage.files import instance_id
from capi_trio.storage.lock import DirectoryLock
from capi_trio.storage.usage import UsageBatch, UsageRepository

__all__ = ["LOCAL_STREAM", "AuditSink", "Database", "Mutation", "open_database"]

T = TypeVar("T")

_READERS: Final = 4

_log = get_logger("storage")
LOCAL_STREAM: Final = "local"
"""The audit stream of a SQLite database, which only ever belongs to the one directory that it lies in."""


def _at_least_one(_: object, __: Attribute[tuple[AuditDraft, ...]], drafts: tuple[AuditDraft, ...]) -> None:
    if not drafts:
        raise LocalError("a change must leave an audit row")


@frozen
class Mutation(Generic[T]):
    """What a change answers, and the audit rows that it leaves: at least one. Raises `LocalError` without.

    `undo` takes back what the change did outside of the database; called in the worker thread when the transaction is
    not committed after all.
    """

    result: T
    audit: tuple[AuditDraft, ...] = field(validator=_at_least_one)
    undo: Callable[[], None] | None = None


class AuditSink(Protocol):
    """What `Database.mutate` needs of the writer of the audit files."""

    def check(self) -> None:
        """Raises `AuditUnavailable` when no further line could be written. Called in a worker thread."""

    def notify(self) -> None:
        """Told after each change that rows wait in the outbox. Called in the trio thread; does not block."""


class Database:
    """An open database. Made by `open_database`."""

    def __init__(
        self,
        where: str,
        stream: str,
        writer: sa.Engine,
        readers: sa.Engine,
        n_readers: int,
        log: sqlite.LogBound | None = None,
    ) -> None:
        self.where = where
        """Its path or address, without a password."""
        self.stream = stream
        """The series of audit numbers of this data directory."""
        self._log = log
        self._writer = writer
        self._readers = readers
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(n_readers)
        self._sink: AuditSink | None = None

    def attach(self, sink: AuditSink | None) -> None:
        """Sets the writer of the audit files; without one, no change is made. `None` takes it away."""
        if sink is not None and self._sink is not None:
            raise LocalError("this database has its audit writer already")
        self._sink = sink

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Runs `query` in a read-only transaction: one consistent state. What it returns must not be lazy.

        Raises what `query` raises, and `DatabaseError`.
        """
        return await trio.to_thread.run_sync(self._read, query, limiter=self._reading)

    async def mutate(self, change: Callable[[sa.Connection], Mutation[T]]) -> T:
        """Runs `change` in a writing transaction, stores its audit rows in the same one, and commits.

        When this returns, the change is on disk, and its audit rows with it. When it raises, nothing was changed,
        save for `CommitUnknown`. Raises what `change` raises, `AuditUnavailable`, and `DatabaseError`.
        """
        result = await trio.to_thread.run_sync(self._mutate, change, limiter=self._writing)
        if self._sink is not None:
            self._sink.notify()
        return result

    async def store_usage(self, batch: UsageBatch) -> None:
        """For the recorder: stores figures, which nobody decided, so without an audit row.

        A batch is stored once: it may be given again after `CommitUnknown`, before any other. Raises `DatabaseError`
        and `RowDamaged`; nothing was stored then, save for `CommitUnknown`.
        """
        await self._maintain(lambda connection: UsageRepository(connection).add(batch, self.stream))

    async def sweep_usage(self, before_ms: int) -> int:
        """For the recorder: removes some figures from before that time (ms since the epoch); returns how many rows,
        and 0 once none is left. Raises `DatabaseError`."""
        return await self._maintain(lambda connection: UsageRepository(connection).sweep(before_ms))

    async def check(self) -> None:
        """Raises what `mutate` would before it begins: for what else has to be done first. `AuditUnavailable`."""
        await trio.to_thread.run_sync(self._check, limiter=self._writing)

    async def clear_audit(self, written: Link) -> None:
        """For the audit writer: the rows up to the line `written` are in a file for good. Raises `DatabaseError`."""
        await self._maintain(lambda connection: outbox.clear(connection, self.stream, written))

    async def renumber_audit(self, written: Link) -> None:
        """For the audit writer: goes on after the line `written`. Raises `DatabaseError`."""
        await self._maintain(lambda connection: outbox.renumber(connection, self.stream, written))

    async def aclose(self) -> None:
        """Waits for a running change, empties the write-ahead log, and closes. Not cancelled half-way."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._close, limiter=self._writing)

    async def _maintain(self, work: Callable[[sa.Connection], T]) -> T:
        return await trio.to_thread.run_sync(self._write, work, limiter=self._writing)

    def _read(self, query: Callable[[sa.Connection], T]) -> T:
        with translated(self.where), self._readers.begin() as connection:
            return query(connection)

    def _mutate(self, change: Callable[[sa.Connection], Mutation[T]]) -> T:
        self._check()
        undo: Callable[[], None] | None = None

        def audited(connection: sa.Connection) -> T:
            nonlocal undo
            mutation = change(connection)
            undo = mutation.undo
            outbox.put(connection, self.stream, mutation.audit)
            return mutation.result

        try:
            return self._write(audited)
        except CommitUnknown:  # to undo what may have been committed would be as wrong
            raise
        except BaseException:
            if undo is not None:
                undo()
            raise

    def _check(self) -> None:
        if self._sink is None:
            raise LocalError("no change is made without an audit writer")
        self._sink.check()

    def _write(self, work: Callable[[sa.Connection], T]) -> T:
        result = self._commit(work)
        if self._log is not None:
            self._log.after_commit(self._writer)
        return result

    def _commit(self, work: Callable[[sa.Connection], T]) -> T:
        with translated(self.where), self._writer.connect() as connection:
            transaction = connection.begin()
            try:
                result = work(connection)
            except BaseException:
                transaction.rollback()
                raise
            try:
                transaction.commit()
            except exc.DBAPIError as error:
                if error.connection_invalidated:
                    raise CommitUnknown(self.where, "the connection broke while a change was committed") from error
                transaction.rollback()
                raise
            return result

    def _close(self) -> None:
        # Readers first: the connection that closes last would move the log into the database, and only one may.
        self._readers.dispose()
        try:
            if self._writer.dialect.name == "sqlite":
                with translated(self.where):
                    sqlite.checkpoint(self._writer)
        finally:
            self._writer.dispose()


@asynccontextmanager
async def open_database(
    lock: DirectoryLock, url: str | None = None, *, readers: int = _READERS
) -> AsyncIterator[Database]:
    """Opens `capi.db` in the locked directory, or the PostgreSQL database at `url`, with its schema up to date.

    Raises `DatabaseError` and `UnsafePath`; `LocalError` when the lock is not held or its database is open already.
    """
    with lock.claim("database"):
        database = await trio.to_thread.run_sync(_open, lock.directory, url, readers)
        try:
            yield database
        finally:
            await database.aclose()


def _open(directory: Path, url: str | None, readers: int) -> Database:
    log = None
    if url is None:
        path = directory / sqlite.DATABASE_NAME
        log = sqlite.LogBound(path)
        if sqlite.has_wal_reset_bug() and sqlite.open_elsewhere(path):
            # Not ours, since the lock is: somebody's shell or backup program. Harmless as long as it only reads.
            _log.warning("database_open_elsewhere", path=str(path), advice="close it, or use SQLite 3.51.3 or newer")
        sqlite.prepare(path)
        where, stream = str(path), LOCAL_STREAM
        writer, reading = sqlite.writer_engine(path), sqlite.reader_engine(path, readers)
    else:
        target = postgres.address(url)
        postgres.prepare(target)
        where, stream = postgres.display(target), instance_id(directory)
        writer, reading = postgres.writer_engine(target), postgres.reader_engine(target, readers)
    database = Database(where, stream, writer, reading, readers, log)
    try:
        # The writer connects first: on SQLite it repairs what a crash left, which readers cannot.
        with translated(where), writer.connect(), reading.connect():
            return database
    except BaseException:
        reading.dispose()
        writer.dispose()
        raise
