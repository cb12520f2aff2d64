"""Each committed change has exactly one line, whatever happens in between."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
import trio

from capi_core.audit import Fault, Link, verify
from capi_core.errors import LocalError
from capi_trio.storage import outbox, sqlite, tables
from capi_trio.storage.audit_log import AuditLog, audit_files, read_lines
from capi_trio.storage.audit_writer import open_audit_writer
from capi_trio.storage.database import Database, open_database
from capi_trio.storage.errors import AuditDiverged, AuditUnavailable
from capi_trio.storage.lock import DirectoryLock
from tests.capi_trio.storage.children import Forker
from tests.capi_trio.storage.disks import small_disk
from tests.capi_trio.storage.helpers import NOW, Backend, Store, added, open_store, record, revoked, row_count, until

__all__ = ["small_disk"]

KILL_ROUNDS = int(os.environ.get("CAPI_KILL_ROUNDS", "20"))
DAY = 24 * 3600 * 1000


class Line(msgspec.Struct):
    """What a line says of a change."""

    seq: int
    action: str
    target: str


def lines(directory: Path) -> list[Line]:
    return [msgspec.json.decode(line, type=Line) for line in read_lines(directory)]


def targets(directory: Path) -> list[str]:
    return [line.target for line in lines(directory)]


@contextmanager
def diverged(match: str) -> Iterator[None]:
    """The error of opening a store, which nurseries may have wrapped."""
    with pytest.RaisesGroup(pytest.RaisesExc(AuditDiverged, match=match), allow_unwrapped=True, flatten_subgroups=True):
        yield


async def test_rows_become_lines_and_leave_the_outbox(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record("a"))
        await revoked(store.database, "key_a")
        assert lines(store.directory) == []
        assert await store.audit.drain() == 2
        assert lines(store.directory) == [Line(1, "key.create", "key_a"), Line(2, "key.revoke", "key_a")]
        assert await store.audit.drain() == 0
        assert await row_count(store.database, "audit_outbox") == 0
        head = await store.database.read(lambda connection: outbox.head(connection, store.database.stream))
        assert verify(read_lines(store.directory), until=head.written).ok


async def test_more_rows_than_a_batch(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        for number in range(300):
            await added(store.database, record(f"{number:03}"))
        assert await store.audit.drain() == 300
        assert targets(store.directory) == [f"key_{number:03}" for number in range(300)]


async def test_rows_are_written_as_they_come(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store, trio.open_nursery() as nursery:
        await nursery.start(store.audit.run)
        for number in range(3):
            await added(store.database, record(f"{number}"))
            await until(lambda: len(lines(store.directory)) == number + 1)  # noqa: B023 - awaited at once
        nursery.cancel_scope.cancel()


async def test_what_waits_at_the_end_is_written(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record())
    assert targets(backend.directory) == ["key_a"]
    async with open_store(backend.directory, backend.url):
        pass
    assert targets(backend.directory) == ["key_a"]


async def test_drains_at_once_write_each_row_once(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(added, store.database, record(f"{number}"))
                nursery.start_soon(store.audit.drain)
        await store.audit.drain()
        assert Counter(targets(store.directory)) == Counter(f"key_{number}" for number in range(20))
        assert verify(read_lines(store.directory)).ok


@pytest.mark.parametrize("step", ["after the append", "after a torn append"])
async def test_a_row_that_is_in_the_file_already_is_not_written_again(
    backend: Backend, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the append and the clearing of the outbox."""

    async def never(*_: object) -> None:
        raise AuditUnavailable("killed here")

    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record("a"))
        await added(store.database, record("b"))
        monkeypatch.setattr(store.database, "clear_audit", never)
        with pytest.raises(AuditUnavailable):
            await store.audit.drain()
    (path,) = audit_files(backend.directory)
    if step == "after a torn append":
        path.write_bytes(path.read_bytes()[:-10])
    async with open_store(backend.directory, backend.url) as store:
        assert targets(store.directory) == ["key_a", "key_b"]
        assert await row_count(store.database, "audit_outbox") == 0
        assert verify(read_lines(store.directory)).ok


async def test_a_cancelled_drain_loses_and_repeats_nothing(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        for number in range(30):
            await added(store.database, record(f"{number}"))
            with trio.CancelScope() as scope:
                if number % 3 == 0:
                    scope.cancel()
                else:
                    scope.deadline = trio.current_time() + 0.0003 * number
                await store.audit.drain()
        await store.audit.drain()
        assert targets(store.directory) == [f"key_{number}" for number in range(30)]


async def test_changes_are_refused_until_the_file_can_be_written(small_disk: Path) -> None:
    """D5: what cannot be audited is not done, and no restart is needed when it can be again."""
    async with open_store(small_disk / "data") as store:
        await added(store.database, record("before"))
        disk = os.statvfs(small_disk)
        (small_disk / "filler").write_bytes(bytes(disk.f_bavail * disk.f_frsize - 200 * 1024))
        for number in range(100):
            with pytest.raises(AuditUnavailable, match="free bytes"):
                await added(store.database, record(f"{number}"))
        assert await row_count(store.database, "keys") == 1
        (small_disk / "filler").unlink()
        await added(store.database, record("after"))
        await store.audit.drain()
        assert targets(store.directory) == ["key_before", "key_after"]


async def test_a_failed_write_closes_the_door_and_a_later_one_opens_it(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure that could not be foreseen: the change was made, its row waits, and the next change is refused."""
    write = os.write

    def no_write(descriptor: int, data: bytes) -> int:
        raise OSError(5, "Input/output error")

    async with open_store(backend.directory, backend.url) as store, trio.open_nursery() as nursery:
        monkeypatch.setattr("capi_trio.storage.audit_writer._RETRY_S", 0.02)
        monkeypatch.setattr(os, "write", no_write)
        await nursery.start(store.audit.run)
        await added(store.database, record("a"))
        await until(lambda: store.audit.failure is not None)
        with pytest.raises(AuditUnavailable, match="Input/output error"):
            await added(store.database, record("b"))
        assert await row_count(store.database, "keys") == 1
        monkeypatch.setattr(os, "write", write)
        await until(lambda: store.audit.failure is None)
        await added(store.database, record("c"))
        await store.audit.drain()
        assert targets(store.directory) == ["key_a", "key_c"]
        nursery.cancel_scope.cancel()


async def test_it_is_open_once(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data") as store:
        with pytest.raises(LocalError, match="open already"):
            async with open_audit_writer(store.database, store.lock):
                pass


async def test_old_files_are_removed(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data") as store:
        await added(store.database, record())
        await store.audit.drain()
        (store.directory / "audit-2020-01-01.jsonl").touch(0o600)
        assert await store.audit.prune(NOW, 365) == ["audit-2020-01-01.jsonl"]


# Files and database that do not belong together. Each is a state in which rows would otherwise be lost silently.


async def two_changes(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record("a"))
        await added(store.database, record("b"))


async def accept(backend: Backend) -> Fault | None:
    """Goes on all the same; returns what `verify` says after two more changes."""
    async with open_store(backend.directory, backend.url, accept_loss=True) as store:
        await added(store.database, record("later"))
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record("last"))
    assert targets(backend.directory)[-2:] == ["key_later", "key_last"]
    return verify(read_lines(backend.directory)).fault


async def test_files_that_are_gone_are_missed(backend: Backend) -> None:
    await two_changes(backend)
    for path in audit_files(backend.directory):
        path.unlink()
    with diverged("end at line 0, but 2 were written"):
        async with open_store(backend.directory, backend.url):
            pass
    assert await accept(backend) is Fault.DROPPED


async def test_a_line_cut_off_at_the_end_is_missed(backend: Backend) -> None:
    """What the chain alone cannot see."""
    await two_changes(backend)
    (path,) = audit_files(backend.directory)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert verify(read_lines(backend.directory)).ok
    with diverged("end at line 1, but 2 were written"):
        async with open_store(backend.directory, backend.url):
            pass
    assert await accept(backend) is Fault.DROPPED


async def test_a_chain_that_was_made_anew_is_noticed(backend: Backend) -> None:
    await two_changes(backend)
    (path,) = audit_files(backend.directory)
    path.unlink()
    forged = AuditLog(backend.directory)
    async with open_store(backend.directory.with_name("forge")) as store:
        await added(store.database, record("x"))
        await added(store.database, record("y"))
        forged.append(await store.database.read(lambda connection: outbox.pending(connection, "local", 2)))
    forged.close()
    with diverged("line 2 of the audit files is not the one"):
        async with open_store(backend.directory, backend.url):
            pass


async def test_a_database_that_is_older_than_its_files_is_noticed(tmp_path: Path) -> None:
    """A lost -wal file, or a database restored without its audit files."""
    backend = Backend(tmp_path / "data", None)
    await two_changes(backend)
    old = (backend.directory / sqlite.DATABASE_NAME).read_bytes()
    async with open_store(backend.directory) as store:
        await added(store.database, record("c"))
    (backend.directory / sqlite.DATABASE_NAME).write_bytes(old)
    with diverged("older than they are"):
        async with open_store(backend.directory):
            pass
    assert await accept(backend) is None
    assert targets(backend.directory) == ["key_a", "key_b", "key_c", "key_later", "key_last"]


async def test_accepting_a_loss_loses_no_row_that_waits(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    await two_changes(backend)

    def no_write(descriptor: int, data: bytes) -> int:
        raise OSError(5, "Input/output error")

    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record("waiting"))
        monkeypatch.setattr(os, "write", no_write)
    monkeypatch.undo()
    for path in audit_files(backend.directory):
        path.unlink()
    async with open_store(backend.directory, backend.url, accept_loss=True):
        pass
    assert lines(backend.directory) == [Line(3, "key.create", "key_waiting")]


# kill -9


async def check(store: Store, acknowledged: list[str]) -> None:
    """Everything that was acknowledged is there; what is there has exactly one line; the files are whole."""

    def state(connection: sa.Connection) -> tuple[dict[str, int | None], Link]:
        rows = connection.execute(sa.select(tables.keys.c.id, tables.keys.c.revoked_at))
        return {row.id: row.revoked_at for row in rows}, outbox.head(connection, store.database.stream).written

    keys, written = await store.database.read(state)
    created = {line.removeprefix("create ") for line in acknowledged if line.startswith("create ")}
    ended = {line.removeprefix("revoke ") for line in acknowledged if line.startswith("revoke ")}
    assert created <= keys.keys()
    assert all(keys[key_id] is not None for key_id in ended)
    audited = Counter((line.action, line.target) for line in lines(store.directory))
    expected = Counter(("key.create", key_id) for key_id in keys)
    expected += Counter(("key.revoke", key_id) for key_id, revoked_at in keys.items() if revoked_at is not None)
    assert audited == expected
    assert verify(read_lines(store.directory), until=written).ok


def integrity(database: Database) -> str:
    with closing(sqlite.connect(Path(database.where), mode="ro", setup=())) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


@pytest.mark.slow
async def test_no_kill_loses_an_acknowledged_change_or_its_line(backend: Backend, tmp_path: Path) -> None:
    """D1: `CAPI_KILL_ROUNDS` kills (20; 200 for the whole test) at random moments of one directory's life."""
    dice = random.Random(1)
    acks = tmp_path / "acks"
    acks.touch()
    with Forker() as forker:
        for number in range(KILL_ROUNDS):
            pid = forker.start("churn", backend.directory, backend.url, acks=acks, seed=number)
            await trio.sleep(dice.uniform(0.0, 0.4))
            os.kill(pid, signal.SIGKILL)
            assert forker.wait() == {pid: -signal.SIGKILL}
            before = time.monotonic()
            async with open_store(backend.directory, backend.url) as store:
                assert time.monotonic() - before < 3
                await check(store, acks.read_text().splitlines())
                if backend.url is None:
                    assert await trio.to_thread.run_sync(integrity, store.database) == "ok"
    assert len(acks.read_text().splitlines()) > KILL_ROUNDS


async def test_closing_ends_although_the_last_lines_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start writes them."""

    def no_write(descriptor: int, data: bytes) -> int:
        raise OSError(5, "Input/output error")

    with DirectoryLock.take(tmp_path / "data") as lock:
        async with open_database(lock) as database:
            async with open_audit_writer(database, lock):
                await added(database, record())
                monkeypatch.setattr(os, "write", no_write)
            monkeypatch.undo()
            async with open_audit_writer(database, lock):
                assert targets(tmp_path / "data") == ["key_a"]


async def test_a_drain_ends_although_changes_keep_coming(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store, trio.open_nursery() as nursery:

        async def change(name: str) -> None:
            for number in range(100_000):
                await added(store.database, record(f"{name}{number}"))

        for name in "abcd":
            nursery.start_soon(change, name)
        with trio.fail_after(10):
            for _ in range(5):
                await store.audit.drain()
        nursery.cancel_scope.cancel()
    assert verify(read_lines(backend.directory)).ok
