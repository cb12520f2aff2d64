"""What the storage tests share: keys and audit rows to store, and an open data directory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import sqlalchemy as sa
import trio
from attrs import frozen

from capi_core.audit import Action, AuditDraft
from capi_core.keys import KeyRecord, Tier
from capi_trio.storage.audit_writer import AuditWriter, open_audit_writer
from capi_trio.storage.database import Database, Mutation, open_database
from capi_trio.storage.keys import KeyRepository
from capi_trio.storage.lock import DirectoryLock

__all__ = [
    "NOW",
    "Backend",
    "Store",
    "added",
    "draft",
    "file_contents",
    "open_store",
    "record",
    "revoked",
    "row_count",
    "until",
]

NOW = 1_790_000_000_000
"""2026-09-21 in ms since the epoch."""


@frozen
class Backend:
    """A database of one test: `url` is `None` for SQLite, which lies in `directory`."""

    directory: Path
    url: str | None


@frozen
class Store:
    """An open data directory with its audit writer."""

    lock: DirectoryLock
    database: Database
    audit: AuditWriter

    @property
    def directory(self) -> Path:
        return self.lock.directory


@asynccontextmanager
async def open_store(directory: Path, url: str | None = None, *, accept_loss: bool = False) -> AsyncIterator[Store]:
    """Everything that the server opens, in the server's order."""
    with DirectoryLock.take(directory, timeout_s=60) as lock:  # somebody else's turn may come first
        async with (
            open_database(lock, url) as database,
            open_audit_writer(database, lock, accept_loss=accept_loss) as audit,
        ):
            yield Store(lock, database, audit)


def record(name: str = "a", *, tier: Tier = Tier.CLIENT, created_at: int = NOW) -> KeyRecord:
    """A key whose id is `key_<name>`; its hash follows from the name."""
    return KeyRecord(
        id=f"key_{name}",
        hash=hashlib.sha256(name.encode()).hexdigest(),
        tier=tier,
        label=f"label of {name}",
        created_at=created_at,
    )


def draft(target: str = "key_a", action: Action = Action.KEY_CREATE, ts: int = NOW) -> AuditDraft:
    return AuditDraft(ts=ts, action=action, target=target)


async def added(database: Database, key: KeyRecord) -> None:
    """Stores a key, with its audit row."""

    def change(connection: sa.Connection) -> Mutation[None]:
        KeyRepository(connection).create(key)
        return Mutation(None, (draft(key.id),))

    await database.mutate(change)


async def revoked(database: Database, key_id: str, now_ms: int = NOW) -> None:
    """Revokes a key, with its audit row."""

    def change(connection: sa.Connection) -> Mutation[None]:
        KeyRepository(connection).revoke(key_id, now_ms)
        return Mutation(None, (draft(key_id, Action.KEY_REVOKE),))

    await database.mutate(change)


async def row_count(database: Database, table: str) -> int:
    def count(connection: sa.Connection) -> int:
        return len(connection.execute(sa.select(sa.text("1")).select_from(sa.table(table))).all())

    return await database.read(count)


async def until(condition: Callable[[], bool]) -> None:
    """Returns once something is so that happens in a thread; fails after five seconds."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - no event tells of what threads have written
            await trio.sleep(0.002)


def file_contents(directory: Path) -> dict[str, bytes]:
    """All files of a directory, by name. For directories whose database this process does not have open."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
