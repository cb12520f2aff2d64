"""A driver's own error becomes one that says what the operator does next."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import exc

from capi_trio.storage.errors import (
    DatabaseCorrupt,
    DatabaseError,
    DatabaseLocked,
    DatabaseReadOnly,
    DatabaseUnavailable,
    DiskFull,
    translated,
)


class FakePostgresError(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("said by the server\nLINE 1: INSERT INTO keys VALUES ('secret')")
        self.sqlstate = sqlstate


def from_sqlite(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("said by sqlite")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_BUSY, DatabaseLocked),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, DatabaseLocked),
        (sqlite3.SQLITE_READONLY_DIRECTORY, DatabaseReadOnly),
        (sqlite3.SQLITE_CORRUPT_INDEX, DatabaseCorrupt),
        (sqlite3.SQLITE_NOTADB, DatabaseCorrupt),
        (sqlite3.SQLITE_FULL, DiskFull),
        (sqlite3.SQLITE_IOERR_FSYNC, DatabaseUnavailable),
    ],
)
def test_sqlites_codes(code: int, kind: type[DatabaseError]) -> None:
    with pytest.raises(kind, match=r"^/data/capi\.db: ") as raw, translated("/data/capi.db"):
        raise from_sqlite(code)
    with pytest.raises(kind) as wrapped, translated("/data/capi.db"):
        raise exc.OperationalError("SELECT", {}, from_sqlite(code))
    assert str(raw.value) == str(wrapped.value)
    assert wrapped.value.where == "/data/capi.db"


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53100", DiskFull),
        ("25006", DatabaseReadOnly),
        ("55P03", DatabaseLocked),
        ("40P01", DatabaseLocked),
        ("XX001", DatabaseCorrupt),
        ("57P01", DatabaseUnavailable),
        (None, DatabaseUnavailable),
    ],
)
def test_postgresqls_codes(state: str | None, kind: type[DatabaseError]) -> None:
    with pytest.raises(kind) as raised, translated("postgresql://host/capi"):
        raise exc.OperationalError("INSERT", {"hash": "secret"}, FakePostgresError(state))
    assert "secret" not in str(raised.value)


def test_a_pool_without_a_free_connection_is_a_lock() -> None:
    with pytest.raises(DatabaseLocked), translated("x"):
        raise exc.TimeoutError


def test_what_is_no_fault_of_the_database_passes() -> None:
    broken = exc.IntegrityError("INSERT", {}, Exception("UNIQUE"))
    for error in (broken, KeyError("x")):
        with pytest.raises(type(error)) as raised, translated("x"):
            raise error
        assert raised.value is error


def test_an_empty_message_is_still_a_reason() -> None:
    with pytest.raises(DatabaseUnavailable, match="OperationalError"), translated("x"):
        raise sqlite3.OperationalError


def test_a_real_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"not a database at all" * 100)
    with (
        closing(sqlite3.connect(path)) as connection,
        pytest.raises(DatabaseCorrupt, match="restore a backup"),
        translated(str(path)),
    ):
        connection.execute("SELECT * FROM sqlite_master")


def test_text_that_is_no_text_is_damage(tmp_path: Path) -> None:
    """Python raises these without SQLite's code."""
    with closing(sqlite3.connect(":memory:")) as connection:
        with pytest.raises(DatabaseCorrupt), translated("x"):
            connection.execute("SELECT CAST(x'c2c2' AS TEXT)").fetchone()
        with pytest.raises(DatabaseCorrupt), translated("x"):
            b"\xc2\xc2".decode()
