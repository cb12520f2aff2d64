"""What the tests of keys, identities and their users share: both over a real database, under a clock of their own."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from attrs import define, frozen

from capi_core.errors import Problem
from capi_core.identities import IdentityRecord
from capi_core.keys import KeyDraft, KeyRecord
from capi_trio.identities import IdentityBook
from capi_trio.keyring import CLI, IssuedKey, Keyring
from capi_trio.operations import Operations
from capi_trio.storage.audit_log import read_lines
from capi_trio.storage.errors import AuditUnavailable
from capi_trio.storage.identities import IdentityRepository
from capi_trio.storage.keys import KeyRepository
from tests.capi_trio.storage.helpers import NOW, Store, open_store

__all__ = [
    "Clock",
    "FullDisk",
    "Line",
    "Ring",
    "audit_lines",
    "bearer",
    "book_of",
    "keyring_of",
    "open_ring",
    "stored",
    "stored_identities",
]

RPM = 60


@define
class Clock:
    """A wall clock in ms that stands still until it is moved."""

    now: int = NOW

    def __call__(self) -> int:
        return self.now


class Line(msgspec.Struct):
    """What a line of an audit file says."""

    seq: int
    ts: int
    action: str
    target: str
    actor_key_id: str | None
    actor_tier: str | None
    before: dict[str, object] | None = None
    after: dict[str, object] | None = None
    ip: str | None = None
    user_agent: str | None = None
    reason: str | None = None


class FullDisk:
    """An audit writer that can write nothing: every change is refused."""

    def check(self) -> None:
        raise AuditUnavailable("the disk is full")

    def notify(self) -> None:
        raise AssertionError("nothing was changed")


@frozen
class Ring:
    """A loaded keyring and what it stands on."""

    store: Store
    keyring: Keyring
    book: IdentityBook
    clock: Clock

    @property
    def operations(self) -> Operations:
        return Operations(self.keyring, self.book, self.store.database, self.store.audit, self.store.lock, self.clock)

    async def make(self, draft: KeyDraft | str = "a") -> IssuedKey:
        """Another key, made at the command line; of a name is made a client key with that label."""
        return await self.keyring.create(KeyDraft(label=draft) if isinstance(draft, str) else draft, CLI)

    def who(self, text: str) -> KeyRecord | Problem:
        """Whom a request with this key comes from."""
        return self.keyring.authenticate(bearer(text))


def bearer(text: str) -> list[tuple[bytes, bytes]]:
    """The headers of a request that presents `text`."""
    return [(b"host", b"capi.test"), (b"authorization", b"Bearer " + text.encode())]


def keyring_of(store: Store, clock: Clock, *, seed: int = 0, rpm: int = RPM) -> Keyring:
    """Another keyring over the same database, as another replica has one. Not loaded."""
    dice = random.Random(seed)
    return Keyring(store.database, now_ms=clock, random_bytes=dice.randbytes, default_rpm=lambda: rpm)


def book_of(store: Store, clock: Callable[[], int], *, seed: int = 0) -> IdentityBook:
    """Another book of identities over the same database and token files. Not loaded."""
    dice = random.Random(seed)
    return IdentityBook(store.database, store.directory, now_ms=clock, random_bytes=dice.randbytes)


@asynccontextmanager
async def open_ring(directory: Path, *, seed: int = 0) -> AsyncIterator[Ring]:
    """A keyring and identities over the database in `directory`. Within one test, each opening needs its own seed."""
    async with open_store(directory) as store:
        clock = Clock()
        keyring = keyring_of(store, clock, seed=seed)
        await keyring.load()
        book = book_of(store, clock, seed=seed)
        await book.load()
        yield Ring(store, keyring, book, clock)


async def stored(store: Store) -> dict[str, KeyRecord]:
    """The keys that the database holds, by id."""
    page = await store.database.read(lambda connection: KeyRepository(connection).list())
    return {record.id: record for record in page.keys}


async def stored_identities(store: Store) -> tuple[IdentityRecord, ...]:
    """The identities that the database holds and that are not removed, by name."""
    return await store.database.read(lambda connection: IdentityRepository(connection).live())


async def audit_lines(store: Store) -> list[Line]:
    """Everything that was audited so far, from the files."""
    await store.audit.drain()
    return [msgspec.json.decode(line, type=Line) for line in read_lines(store.directory)]
