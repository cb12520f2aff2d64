"""SQLite: how a database file is made, judged and connected to.

Why these settings: WAL, so that readers never wait for the writer; `synchronous=FULL`, because in WAL mode NORMAL
loses the last commits in a power cut, and a revocation must not come undone; no mmap, because a damaged file would
then end the process by a signal. One connection writes, and it alone checkpoints: see `lock` for the reason. Readers
open the file read-only, so they cannot.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from capi_trio.storage import migrations
from capi_trio.storage.errors import DatabaseCorrupt, DatabaseReadOnly, DatabaseUnavailable, translated
from capi_trio.storage.files import check_file, create_file, open_private, sync_directory
from capi_trio.storage.tables import TELEMETRY, metadata

__all__ = [
    "APPLICATION_ID",
    "DATABASE_NAME",
    "LogBound",
    "checkpoint",
    "connect",
    "create",
    "has_wal_reset_bug",
    "open_elsewhere",
    "prepare",
    "reader_engine",
    "writer_engine",
]

DATABASE_NAME: Final = "capi.db"
APPLICATION_ID: Final = 0x63617069  # "capi" in ASCII

_BUSY_S: Final = 5.0
_WAL_FIXED: Final = (3, 51, 3)
_SHM_IN_USE: Final = 128  # the byte of a -shm file that every connection share-locks (SQLite's os_unix.c, UNIX_SHM_DMS)
_WAL_KEPT_BYTES: Final = 16 * 1024 * 1024
_SIDE_FILES: Final = ("-wal", "-shm", "-journal")

_COMMON: Final = ("PRAGMA mmap_size = 0", "PRAGMA temp_store = MEMORY")
_WRITER: Final = (
    *_COMMON,
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA cell_size_check = ON",
    f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}",
)
_READER: Final = (*_COMMON, "PRAGMA query_only = 1", "PRAGMA wal_autocheckpoint = 0")


_RETRY_S: Final = 0.02
_LOG_BYTES: Final = 32 * 1024 * 1024
"""Where the log is made to start anew; SQLite's own attempts begin at 4 MB and give way to every reader."""


def has_wal_reset_bug() -> bool:
    """Whether this SQLite can damage a WAL database that two connections write at once (fixed in 3.51.3)."""
    return sqlite3.sqlite_version_info < _WAL_FIXED


def prepare(path: Path) -> None:
    """Makes the database when there is none, checks it when there is, and brings its schema up to date.

    The caller holds the directory's lock. Raises `DatabaseError` or `UnsafePath`.
    """
    found = check_file(path)
    sides = [check_file(path.with_name(path.name + end)) for end in _SIDE_FILES]
    if found is None:
        if any(side is not None and side.st_size for side in sides):
            raise DatabaseCorrupt(
                str(path), "is missing, but its -wal or -journal file is still there. Put it back or restore a backup"
            )
        _create_whole(path)
        return
    if found.st_size == 0:
        raise DatabaseCorrupt(str(path), "is empty. capi never leaves it so: restore a backup")
    if not os.access(path, os.W_OK):
        raise DatabaseReadOnly(str(path), "is read-only for this user, or its disk is")
    with translated(str(path)), closing(connect(path)) as connection:
        _check_content(connection, str(path))
    _migrate(path)


def create(path: Path) -> None:
    """Makes a new database with the current schema, in a single file. Raises `DatabaseError` or `OSError`."""
    create_file(path)
    with translated(str(path)), closing(connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    _migrate(path)


def writer_engine(path: Path) -> sa.Engine:
    """An engine with exactly one connection, whose transactions start with the write lock."""
    return _engine(path, lambda: _connect_writer(path), size=1, begin="BEGIN IMMEDIATE")


def reader_engine(path: Path, size: int) -> sa.Engine:
    """An engine with at most `size` connections, none of which can change the file."""
    return _engine(path, lambda: connect(path, mode="ro", setup=_READER), size=size, begin="BEGIN")


def connect(path: Path, *, mode: str = "rw", setup: tuple[str, ...] = _WRITER) -> sqlite3.Connection:
    """One connection that begins no transaction by itself, may move between threads, and never makes a file."""
    connection = sqlite3.connect(
        f"file:{quote(os.fspath(path.absolute()))}?mode={mode}",
        uri=True,
        timeout=_BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for pragma in setup:
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


def checkpoint(writer: sa.Engine) -> None:
    """Moves what is in the -wal file into the database and empties it. Raises `sqlalchemy.exc.DBAPIError`."""
    connection = writer.raw_connection()
    try:
        connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


class LogBound:
    """Keeps the write-ahead log from growing while readers follow each other so closely that it is never unused.

    SQLite starts its log anew only at a moment when nobody reads from it. When the log has passed `limit` bytes after a
    change, the writer waits for that moment, as long as it waits for a lock. A reader that stays longer is not cut off:
    the next attempt is at twice the size.

    SQLite's own waiting does not do: it waits for the place of a reader, and whoever comes next takes the same place.
    So all of the log is moved into the database first, as often as it takes until no reader is in the way of that; from
    then on new readers need the log no more, and only those that are there have to leave.
    """

    def __init__(self, path: Path, limit: int = _LOG_BYTES) -> None:
        self._log = path.with_name(path.name + "-wal")
        self._limit = limit
        self._next = limit

    def after_commit(self, writer: sa.Engine) -> None:
        """Called in the writer's thread. Raises nothing: the change that was made stands."""
        try:
            if self._log.stat().st_size < self._next:
                return
            self._empty(writer)
            size = self._log.stat().st_size
        except (OSError, sa.exc.DBAPIError):
            return
        self._next = self._limit if size < self._limit else 2 * size

    def _empty(self, writer: sa.Engine) -> None:
        give_up = time.monotonic() + _BUSY_S
        connection = writer.raw_connection()
        try:
            cursor = connection.cursor()
            while time.monotonic() < give_up:
                _, frames, moved = cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if frames == moved:
                    cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    return
                time.sleep(_RETRY_S)
        finally:
            connection.close()


def open_elsewhere(path: Path) -> bool:
    """Whether another process has the database open. To be asked before this process opens it. Raises `UnsafePath`."""
    try:
        descriptor = open_private(path.with_name(path.name + "-shm"), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _SHM_IN_USE)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _engine(path: Path, creator: Callable[[], sqlite3.Connection], *, size: int, begin: str) -> sa.Engine:
    engine = sa.create_engine(
        "sqlite+pysqlite://", creator=creator, poolclass=QueuePool, pool_size=size, max_overflow=0, pool_timeout=_BUSY_S
    )

    def start(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "begin", start)
    return engine


def _connect_writer(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    try:
        # Inside a transaction this would change nothing and answer with the old mode; here none is open.
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != ("wal",):
            raise DatabaseUnavailable(str(path), f"cannot use a write-ahead log here (mode {mode}). Use a local disk")
    except BaseException:
        connection.close()
        raise
    return connection


def _create_whole(path: Path) -> None:
    """Makes the database under another name and moves it into place: an unfinished one is never found at `path`."""
    unfinished = path.with_name(path.name + ".new")
    for end in ("", *_SIDE_FILES):
        unfinished.with_name(unfinished.name + end).unlink(missing_ok=True)
    try:
        create(unfinished)
        unfinished.rename(path)
        sync_directory(path.parent)
    except OSError as error:
        raise DatabaseUnavailable(str(path), f"cannot be made: {error.strerror}") from error


def _migrate(path: Path) -> None:
    engine = writer_engine(path)
    try:
        with translated(str(path)):
            migrations.upgrade(engine, str(path))
    finally:
        engine.dispose()


def _check_content(connection: sqlite3.Connection, where: str) -> None:
    """Refuses another program's file, and damage in the tables without which nobody may be let in.

    Telemetry is not read through: it is large, and a start must be quick. Damage there shows when it is read.
    """
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        raise DatabaseCorrupt(where, "is not a database of capi, or its header is damaged")
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table in sorted(present & (metadata.tables.keys() - TELEMETRY)):
        result = connection.execute(f"PRAGMA integrity_check({table})").fetchone()
        if result != ("ok",):
            raise DatabaseCorrupt(where, f"is damaged in table {table}. Stop capi, keep a copy, and restore a backup")
