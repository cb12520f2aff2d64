"""PostgreSQL, through psycopg 3: for more than one replica.

All writing transactions of all replicas run one after the other, as on SQLite: each starts with one advisory lock.
What a change decides by what it read is therefore still true when it commits.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError

from capi_trio.storage import migrations
from capi_trio.storage.errors import DatabaseUnavailable, DriverMissing, translated

__all__ = ["WRITE_LOCK", "address", "display", "prepare", "reader_engine", "writer_engine"]

WRITE_LOCK: Final = 0x63617069  # "capi" in ASCII: the key of the advisory lock that serializes writes

_SCHEMES: Final = ("postgresql", "postgres", "postgresql+psycopg")
_LOCK_TIMEOUT: Final = "-c lock_timeout=5s"
_CONNECT_TIMEOUT_S: Final = 5


def address(url: str) -> sa.URL:
    """The address in SQLAlchemy's form. Raises `DatabaseUnavailable` for anything but `postgresql://...`."""
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.drivername not in _SCHEMES:
        # The text is not repeated: it may hold a password.
        raise DatabaseUnavailable("--database", "is not an address like postgresql://user@host/name")
    return parsed.set(drivername="postgresql+psycopg")


def display(url: sa.URL) -> str:
    """The address without its password, for people."""
    return sa.URL.create("postgresql", url.username, None, url.host, url.port, url.database).render_as_string()


def prepare(url: sa.URL) -> None:
    """Brings the schema up to date. Raises `DatabaseError`."""
    engine = writer_engine(url)
    try:
        with translated(display(url)):
            migrations.upgrade(engine, display(url))
    finally:
        engine.dispose()


def writer_engine(url: sa.URL) -> sa.Engine:
    """An engine with one connection, whose transactions start with the write lock of all replicas."""
    engine = _engine(url, 1, _LOCK_TIMEOUT)

    def start(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")
        # An acknowledged change must be on disk, also where the server's default says otherwise.
        connection.exec_driver_sql(
            "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
        )

    event.listen(engine, "begin", start)
    return engine


def reader_engine(url: sa.URL, size: int) -> sa.Engine:
    """An engine with at most `size` connections, on which the server refuses writes."""
    return _engine(
        url,
        size,
        # Repeatable read: a transaction of several queries sees one state of the database, as on SQLite.
        f"{_LOCK_TIMEOUT} -c default_transaction_read_only=on -c default_transaction_isolation=repeatable\\ read",
    )


def _engine(url: sa.URL, size: int, options: str) -> sa.Engine:
    try:
        return sa.create_engine(
            url,
            pool_size=size,
            max_overflow=0,
            pool_timeout=_CONNECT_TIMEOUT_S,
            # A connection that the server has closed meanwhile is noticed and replaced before it is used.
            pool_pre_ping=True,
            # Values of rows do not belong into error messages, which end up in logs.
            hide_parameters=True,
            connect_args={"connect_timeout": _CONNECT_TIMEOUT_S, "application_name": "capi", "options": options},
        )
    except ModuleNotFoundError as error:
        raise DriverMissing(display(url), "needs psycopg: pip install 'capi-gateway[postgres]'") from error
