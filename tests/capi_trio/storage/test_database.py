"""Reads and changes from trio: in threads, one writer, nothing half done, nothing unaudited."""

import gc
import os
import signal
import stat
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog
import trio
from attrs import evolve
from sqlalchemy.exc import IntegrityError

from capi_core.errors import LocalError
from capi_core.keys import Tier
from capi_trio.storage import sqlite, tables
from capi_trio.storage.database import Database, Mutation, open_database
from capi_trio.storage.errors import AuditUnavailable, DatabaseError, DatabaseReadOnly, DiskFull
from capi_trio.storage.keys import KeyRepository
from capi_trio.storage.lock import DirectoryLock
from tests.capi_trio.storage.children import Forker, wait_for
from tests.capi_trio.storage.disks import small_disk
from tests.capi_trio.storage.helpers import (
    NOW,
    Backend,
    added,
    draft,
    file_contents,
    open_store,
    record,
    revoked,
    row_count,
)

__all__ = ["small_disk"]


async def test_what_was_changed_is_there_after_reopening(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record())
        await revoked(store.database, "key_a")
    async with open_store(backend.directory, backend.url) as store:
        key = await store.database.read(lambda connection: KeyRepository(connection).get("key_a"))
        assert key.revoked_at == NOW


async def test_a_change_without_an_audit_row_cannot_be(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:

        def silent(connection: sa.Connection) -> Mutation[None]:
            KeyRepository(connection).create(record())
            return Mutation(None, ())

        with pytest.raises(LocalError, match="audit row"):
            await store.database.mutate(silent)
        assert await row_count(store.database, "keys") == 0


async def test_a_change_without_an_audit_writer_cannot_be(backend: Backend) -> None:
    with DirectoryLock.take(backend.directory) as lock:
        async with open_database(lock, backend.url) as database:
            with pytest.raises(LocalError, match="audit writer"):
                await added(database, record())
            assert await row_count(database, "keys") == 0


class Sink:
    """An audit writer that says what it is told to."""

    def __init__(self, fault: str | None = None) -> None:
        self.fault = fault
        self.notified = 0

    def check(self) -> None:
        if self.fault is not None:
            raise AuditUnavailable(self.fault)

    def notify(self) -> None:
        self.notified += 1


async def test_nothing_changes_while_the_audit_file_cannot_be_written(backend: Backend) -> None:
    """D5."""
    with DirectoryLock.take(backend.directory) as lock:
        async with open_database(lock, backend.url) as database:
            sink = Sink("no")
            database.attach(sink)
            with pytest.raises(LocalError, match="already"):
                database.attach(Sink())
            for number in range(100):
                with pytest.raises(AuditUnavailable, match="no"):
                    await added(database, record(f"{number}"))
            assert await row_count(database, "keys") == await row_count(database, "audit_outbox") == 0
            assert sink.notified == 0
            sink.fault = None
            await added(database, record())
            assert sink.notified == 1


async def test_a_query_cannot_write(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record())
        with pytest.raises(DatabaseReadOnly):
            await store.database.read(lambda connection: connection.execute(tables.keys.delete()).rowcount)
        assert await row_count(store.database, "keys") == 1


async def test_a_query_sees_one_state_while_changes_go_on(backend: Backend) -> None:
    """Readers neither wait for the writer nor see half of what it does."""
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record("a"))
        reading, go_on = threading.Event(), threading.Event()

        def count_twice(connection: sa.Connection) -> tuple[int, int]:
            query = sa.select(sa.func.count()).select_from(tables.keys)
            first = connection.execute(query).scalar_one()
            reading.set()
            assert go_on.wait(10)
            return first, connection.execute(query).scalar_one()

        async def change() -> None:
            await trio.to_thread.run_sync(reading.wait)
            await added(store.database, record("b"))
            go_on.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            assert await store.database.read(count_twice) == (1, 1)
        assert await row_count(store.database, "keys") == 2


async def test_the_event_loop_goes_on_while_threads_work(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:

        def slow(connection: sa.Connection) -> Mutation[None]:
            time.sleep(0.3)
            return Mutation(None, (draft(),))

        longest = 0.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.database.mutate, slow)
            end = trio.current_time() + 0.25
            while (before := trio.current_time()) < end:
                await trio.sleep(0.005)
                longest = max(longest, trio.current_time() - before)
        assert longest < 0.15


async def test_a_change_that_has_begun_is_finished_and_answered_despite_cancellation(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        scope = trio.CancelScope()
        begun = threading.Event()

        def slow(connection: sa.Connection) -> Mutation[str]:
            begun.set()
            time.sleep(0.1)
            KeyRepository(connection).create(record())
            return Mutation("done", (draft(),))

        async def cancel() -> None:
            await trio.to_thread.run_sync(begun.wait)
            scope.cancel()

        answer = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            with scope:
                answer = await store.database.mutate(slow)
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert answer == "done"
        assert await row_count(store.database, "keys") == 1
        assert await store.audit.drain() == 1


async def test_a_change_that_waits_its_turn_can_be_cancelled_and_is_not_made(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        begun, go_on = threading.Event(), threading.Event()

        def slow(connection: sa.Connection) -> Mutation[None]:
            begun.set()
            assert go_on.wait(10)
            return Mutation(None, (draft(),))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.database.mutate, slow)
            await trio.to_thread.run_sync(begun.wait)
            with trio.move_on_after(0.05) as waiting:
                await added(store.database, record())
            go_on.set()
        assert waiting.cancelled_caught
        assert await row_count(store.database, "keys") == 0


async def test_a_failed_change_leaves_the_writer_usable(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:

        def broken(connection: sa.Connection) -> Mutation[None]:
            KeyRepository(connection).create(record())
            raise ZeroDivisionError

        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                await store.database.mutate(broken)
        await added(store.database, record())


async def test_what_a_change_did_elsewhere_is_undone_when_it_is_not_committed(backend: Backend) -> None:
    undone: list[str] = []

    def twice(connection: sa.Connection) -> Mutation[None]:
        return Mutation(None, (draft(),), lambda: undone.append("done twice"))

    def unwritable(connection: sa.Connection) -> Mutation[None]:
        KeyRepository(connection).create(evolve(record("b"), rotated_from="nobody"))  # found out by the commit
        return Mutation(None, (draft(),), lambda: undone.append("undone"))

    async with open_store(backend.directory, backend.url) as store:
        await store.database.mutate(twice)
        assert undone == []
        with pytest.raises(IntegrityError):
            await store.database.mutate(unwritable)
        assert undone == ["undone"]
        await store.database.mutate(twice)
        assert undone == ["undone"]
        assert await row_count(store.database, "keys") == 0


async def test_what_must_come_first_can_ask_whether_a_change_could_be_made(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await store.database.check()
        store.database.attach(None)
        with pytest.raises(LocalError):
            await store.database.check()


async def test_it_is_open_once_and_only_under_the_lock(backend: Backend) -> None:
    with DirectoryLock.take(backend.directory) as lock:
        async with open_database(lock, backend.url):
            with pytest.raises(LocalError, match="open already"):
                async with open_database(lock, backend.url):
                    pass
    with pytest.raises(LocalError, match="not held"):
        async with open_database(lock, backend.url):
            pass


async def test_closing_leaves_one_file_and_no_connection(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    async with open_store(directory) as store:
        await added(store.database, record())
        assert (directory / "capi.db-wal").stat().st_size > 0
    gc.collect()
    assert sorted(os.listdir(directory)) == ["audit-2026-09-21.jsonl", "capi.db", "capi.lock"]
    assert not any("capi.db" in os.readlink(link) for link in _open_files())


def _open_files() -> list[Path]:
    return [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


async def test_everything_in_the_directory_is_for_the_owner_only(backend: Backend) -> None:
    previous = os.umask(0)
    try:
        async with open_store(backend.directory, backend.url) as store:
            await added(store.database, record())
            await store.audit.drain()
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in backend.directory.iterdir()}
    finally:
        os.umask(previous)
    assert len(modes) >= 3
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(backend.directory.stat().st_mode) == 0o700


async def until_refused(database: Database) -> int:
    """Adds keys until the disk is full; returns how many were acknowledged."""
    for made in range(1000):
        try:
            await added(database, record(f"{made}"))
        except DiskFull:
            return made
    raise AssertionError("the disk does not get full")


async def test_a_full_disk_refuses_a_change_whole_and_recovers(small_disk: Path) -> None:
    """D2: no restart is needed when there is space again."""
    directory = small_disk / "data"
    with DirectoryLock.take(directory) as lock:
        async with open_database(lock) as database:
            database.attach(Sink())
            filler = small_disk / "filler"
            filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 64 * 1024))
            made = await until_refused(database)
            for _ in range(20):
                with pytest.raises(DatabaseError):
                    await added(database, record("refused"))
            assert await row_count(database, "keys") == made
            filler.unlink()
            await added(database, record("after"))
            assert await row_count(database, "keys") == await row_count(database, "audit_outbox") == made + 1
            database.attach(None)


@pytest.mark.slow
async def test_of_eight_that_bootstrap_at_once_one_makes_the_key(backend: Backend, tmp_path: Path) -> None:
    """A10. On SQLite they share a directory and its lock; on PostgreSQL they are replicas with a directory each."""
    with Forker() as forker:
        for number in range(8):
            directory = backend.directory if backend.url is None else tmp_path / f"replica{number}"
            forker.start("bootstrap", directory, backend.url, acks=tmp_path / f"acks{number}")
        assert set(forker.wait().values()) == {0}
    said = sorted((tmp_path / f"acks{number}").read_text() for number in range(8))
    assert said == ["found\n"] * 7 + ["made\n"]
    async with open_store(backend.directory, backend.url) as store:
        admins = await store.database.read(lambda connection: KeyRepository(connection).active_admins(NOW))
        assert [admin.tier for admin in admins] == [Tier.ADMIN]


async def test_a_database_of_a_newer_capi_is_left_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    async with open_store(directory) as store:
        await added(store.database, record())
    connection = sqlite.connect(directory / "capi.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = file_contents(directory)
    with pytest.RaisesGroup(DatabaseError, allow_unwrapped=True, flatten_subgroups=True):
        async with open_store(directory):
            pass
    assert file_contents(directory)["capi.db"] == before["capi.db"]


def test_only_the_writer_of_audit_files_may_change_what_is_not_audited() -> None:
    """By construction: every public way to write stores an audit row, only moves audit rows on, or is about figures."""
    public = {name for name in vars(Database) if not name.startswith("_")}
    figures = {"store_usage", "sweep_usage"}
    assert public == {"attach", "check", "read", "mutate", "clear_audit", "renumber_audit", "aclose"} | figures


@pytest.mark.parametrize("has_bug", [True, False])
async def test_a_database_that_somebody_else_has_open_is_told_where_it_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bug: bool
) -> None:
    """Two writing processes can damage it with SQLite before 3.51.3."""
    directory = tmp_path / "data"
    async with open_store(directory) as store:
        await added(store.database, record())
    monkeypatch.setattr(sqlite, "has_wal_reset_bug", lambda: has_bug)
    with Forker() as forker, structlog.testing.capture_logs() as lines:
        pid = forker.start("connect", directory, acks=tmp_path / "acks")
        await trio.to_thread.run_sync(wait_for, tmp_path / "acks")
        async with open_store(directory) as store:
            await added(store.database, record("b"))
        os.kill(pid, signal.SIGKILL)
        forker.wait()
    assert [line["event"] for line in lines] == ["database_open_elsewhere"] * has_bug
