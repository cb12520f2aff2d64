"""What storage can fail with, in words for the operator, and how a driver's own error becomes one of them.

- `StorageError`
    - `UnsafePath`, `DirectoryLocked`: the data directory is not (only) ours.
    - `DatabaseError`: names the database; one class for each thing that an operator does next.
    - `AuditUnavailable`, `AuditDiverged`: the audit files cannot take another line.
    - `BackupError`: no backup was made.
    - `RowDamaged`: one row cannot be understood.
    - `KeyNotFound`, `KeyExists`, `KeyNotActive`: the caller's request does not fit the keys there are.
    - `IdentityNotFound`, `IdentityExists`, `IdentityConflict`: nor the identities.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import exc

__all__ = [
    "AuditDiverged",
    "AuditUnavailable",
    "BackupError",
    "CommitUnknown",
    "DatabaseCorrupt",
    "DatabaseError",
    "DatabaseLocked",
    "DatabaseReadOnly",
    "DatabaseTooNew",
    "DatabaseUnavailable",
    "DirectoryLocked",
    "DiskFull",
    "DriverMissing",
    "IdentityConflict",
    "IdentityExists",
    "IdentityNotFound",
    "KeyExists",
    "KeyNotActive",
    "KeyNotFound",
    "RowDamaged",
    "StorageError",
    "UnsafePath",
    "translated",
]


class StorageError(Exception):
    """Base of everything storage raises on purpose. The text is for the operator: what happened, what to do."""


class UnsafePath(StorageError):
    """A path is not what it must be: a link, another user's, or not a regular file."""


class DirectoryLocked(StorageError):
    """Another process holds the data directory."""


class DatabaseError(StorageError):
    """Base of what can be wrong with a database. `where` names it: a path, or an address without its password."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


class DatabaseCorrupt(DatabaseError):
    """The file is damaged, is empty, or belongs to another program."""


class DatabaseReadOnly(DatabaseError):
    """The file, its disk or the server refuses writes."""


class DatabaseTooNew(DatabaseError):
    """A newer version of capi made this database."""


class DatabaseLocked(DatabaseError):
    """Another process kept the database busy for longer than we wait."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be reached or read right now. Nothing was changed."""


class CommitUnknown(DatabaseError):
    """The connection broke during COMMIT: the change may or may not be there. Read before trying again."""


class DiskFull(DatabaseError):
    """No space is left. Nothing was changed."""


class DriverMissing(DatabaseError):
    """The optional package that talks to this kind of database is not installed."""


class AuditUnavailable(StorageError):
    """The audit file cannot be written: changes are refused until it can."""


class AuditDiverged(AuditUnavailable):
    """The audit files and the database do not belong to the same point of one history."""


class BackupError(StorageError):
    """The backup was not made; nothing was left at its path."""


class RowDamaged(StorageError):
    """A stored row does not say anything that could have been stored."""


class KeyNotFound(StorageError):
    """No key has this id."""


class KeyExists(StorageError):
    """A key with this id or hash is there already."""


class KeyNotActive(StorageError):
    """The key is revoked or expired, so it cannot be changed in this way."""


class IdentityNotFound(StorageError):
    """No identity has this name, or it was removed."""


class IdentityExists(StorageError):
    """An identity of this name is there already."""


class IdentityConflict(StorageError):
    """The identity is in no state for this change."""


_CORRUPT: Final = "is damaged. Stop capi, keep a copy of the file, and restore a backup"
_READ_ONLY: Final = "cannot be written: the file, the disk or the server is read-only"
_LOCKED: Final = "is kept busy by another process. Stop it, or try again"
_FULL: Final = "cannot grow: the disk is full. Free some space; nothing was changed"
_UNAVAILABLE: Final = "cannot be used now"

_UNDECODABLE: Final = "Could not decode to UTF-8"  # Python's sqlite3, which gives no code with it

# Primary result codes of SQLite (the low byte of the extended ones), https://www.sqlite.org/rescode.html.
_SQLITE: Final[dict[int, tuple[type[DatabaseError], str]]] = {
    sqlite3.SQLITE_BUSY: (DatabaseLocked, _LOCKED),
    sqlite3.SQLITE_LOCKED: (DatabaseLocked, _LOCKED),
    sqlite3.SQLITE_READONLY: (DatabaseReadOnly, _READ_ONLY),
    sqlite3.SQLITE_CORRUPT: (DatabaseCorrupt, _CORRUPT),
    sqlite3.SQLITE_NOTADB: (DatabaseCorrupt, _CORRUPT),
    sqlite3.SQLITE_FULL: (DiskFull, _FULL),
}
# SQLSTATE codes and classes of PostgreSQL, longest match first, https://www.postgresql.org/docs/current/errcodes-appendix.html.
_POSTGRES: Final[dict[str, tuple[type[DatabaseError], str]]] = {
    "53100": (DiskFull, _FULL),
    "25006": (DatabaseReadOnly, _READ_ONLY),
    "55P03": (DatabaseLocked, _LOCKED),
    "57014": (DatabaseLocked, _LOCKED),
    "40": (DatabaseLocked, _LOCKED),
    "XX": (DatabaseCorrupt, "reports damaged data; see the server's log"),
}


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turns what a driver raises inside into a `DatabaseError` about `where`; a broken constraint passes as it is."""
    try:
        yield
    except exc.IntegrityError:
        raise
    except (exc.DBAPIError, sqlite3.Error) as error:
        raise _typed(where, error) from error
    except exc.TimeoutError as error:
        raise DatabaseLocked(where, _LOCKED) from error
    except UnicodeDecodeError as error:  # Python's sqlite3, on a message that quotes a damaged name
        raise DatabaseCorrupt(where, _CORRUPT) from error


def _typed(where: str, error: exc.DBAPIError | sqlite3.Error) -> DatabaseError:
    cause = error.orig if isinstance(error, exc.DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", None)
    if isinstance(code, int) and (code & 0xFF) in _SQLITE:
        kind, message = _SQLITE[code & 0xFF]
        return kind(where, message)
    if code is None and str(cause).startswith(_UNDECODABLE):
        return DatabaseCorrupt(where, _CORRUPT)
    state = getattr(cause, "sqlstate", None)
    for length in (5, 2):
        if isinstance(state, str) and state[:length] in _POSTGRES:
            kind, message = _POSTGRES[state[:length]]
            return kind(where, message)
    return DatabaseUnavailable(where, f"{_UNAVAILABLE}: {_first_line(cause)}")


def _first_line(error: BaseException | None) -> str:
    # Drivers append the statement, and with it what was being stored, on further lines.
    return str(error).strip().partition("\n")[0] or type(error).__name__
