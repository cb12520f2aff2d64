"""A backup is whole, private, and becomes the same gateway again."""

import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
import trio

from capi_core.audit import Action, verify
from capi_core.identities import IdentityDraft, IdentityEdit
from capi_core.keys import KeyRecord
from capi_trio.keyring import CLI
from capi_trio.storage import outbox
from capi_trio.storage.audit_log import read_lines
from capi_trio.storage.backup import MANIFEST_NAME, Manifest, back_up, load, restore
from capi_trio.storage.database import Mutation
from capi_trio.storage.errors import BackupError, StorageError
from capi_trio.storage.keys import KeyRepository
from capi_trio.storage.lock import DirectoryLock
from capi_trio.upstream import Secret
from tests.capi_trio.helpers import book_of, stored_identities
from tests.capi_trio.storage.conftest import PostgresServer
from tests.capi_trio.storage.disks import small_disk
from tests.capi_trio.storage.helpers import (
    NOW,
    Backend,
    Store,
    added,
    draft,
    open_store,
    record,
    revoked,
    row_count,
)

__all__ = ["small_disk"]

CONFIG = b'{"version": 1}'


async def fill(store: Store) -> None:
    """Changes in the files, changes in the outbox, and a configuration."""
    for name in "abc":
        await added(store.database, record(name))
    await store.audit.drain()
    await revoked(store.database, "key_b")
    (store.directory / "config.json").write_bytes(CONFIG)


async def all_keys(store: Store) -> tuple[KeyRecord, ...]:
    page = await store.database.read(lambda connection: KeyRepository(connection).list(limit=1000))
    return page.keys


async def save(store: Store, path: Path) -> Manifest:
    return await back_up(store.database, store.audit, store.lock, path, now_ms=NOW)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def unpack(archive: Path, directory: Path) -> Manifest:
    with DirectoryLock.take(directory) as lock:
        return restore(archive, lock)


async def test_what_is_restored_goes_on_where_the_backup_was_made(backend: Backend, tmp_path: Path) -> None:
    archive = tmp_path / "capi.tar"
    async with open_store(backend.directory, backend.url) as store:
        await fill(store)
        keys = await all_keys(store)
        made = await save(store, archive)
        await added(store.database, record("after the backup"))
    assert unpack(archive, tmp_path / "new") == made
    async with open_store(tmp_path / "new") as store:
        assert await all_keys(store) == keys
        await added(store.database, record("d"))
    assert (tmp_path / "new" / "config.json").read_bytes() == CONFIG
    verdict = verify(read_lines(tmp_path / "new"))
    assert verdict.ok
    assert verdict.last is not None
    assert verdict.last.seq == 5


async def test_the_archive_is_private_and_any_tar_can_read_it(backend: Backend, tmp_path: Path) -> None:
    archive = tmp_path / "capi.tar"
    previous = os.umask(0)
    try:
        async with open_store(backend.directory, backend.url) as store:
            await fill(store)
            await save(store, archive)
    finally:
        os.umask(previous)
    assert mode(archive) == 0o600
    listed = (await trio.run_process(["tar", "-tvf", str(archive)], capture_stdout=True)).stdout.decode().splitlines()
    names = [line.split()[-1] for line in listed]
    assert names == ["audit-2026-09-21.jsonl", "config.json", "capi.db", MANIFEST_NAME]
    assert all(line.startswith("-rw------- 0/0") for line in listed)
    assert sorted(os.listdir(tmp_path)) == ["capi.tar", "data"]


async def test_unpacking_by_hand_is_a_restore_too(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data") as store:
        await fill(store)
        keys = await all_keys(store)
        await save(store, tmp_path / "capi.tar")
    (tmp_path / "new").mkdir(mode=0o700)
    command = ["tar", "-xf", str(tmp_path / "capi.tar"), "-C", str(tmp_path / "new")]
    await trio.run_process(command)
    async with open_store(tmp_path / "new") as store:
        assert await all_keys(store) == keys


async def test_changes_go_on_meanwhile_and_the_copy_is_of_one_moment(backend: Backend, tmp_path: Path) -> None:
    """Every key in a copy has its audit row there, in a file or in the outbox; none has two."""
    async with open_store(backend.directory, backend.url) as store, trio.open_nursery() as nursery:
        await nursery.start(store.audit.run)

        async def change() -> None:
            for number in range(10_000):
                await added(store.database, record(f"{number}"))

        nursery.start_soon(change)
        for number in range(4):
            await save(store, tmp_path / f"{number}.tar")
        nursery.cancel_scope.cancel()
    sizes = []
    for number in range(4):
        unpack(tmp_path / f"{number}.tar", tmp_path / f"new{number}")
        async with open_store(tmp_path / f"new{number}") as store:
            keys = await row_count(store.database, "keys")
            verdict = verify(read_lines(store.directory))
            assert verdict.ok
            assert (0 if verdict.last is None else verdict.last.seq) == keys
            sizes.append(keys)
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


async def test_a_fresh_gateway_has_a_backup_too(backend: Backend, tmp_path: Path) -> None:
    async with open_store(backend.directory, backend.url) as store:
        made = await save(store, tmp_path / "capi.tar")
    assert [member.name for member in made.members] == ["capi.db"]
    unpack(tmp_path / "capi.tar", tmp_path / "new")
    async with open_store(tmp_path / "new") as store:
        await added(store.database, record())


@pytest.mark.parametrize("plant", ["file", "link", "dangling link", "directory"])
async def test_nothing_is_ever_overwritten(tmp_path: Path, plant: str) -> None:
    archive, target = tmp_path / "capi.tar", tmp_path / "precious"
    target.write_text("content")
    match plant:
        case "file":
            archive.write_text("content")
        case "link":
            archive.symlink_to(target)
        case "dangling link":
            archive.symlink_to(tmp_path / "nowhere")
        case _:
            archive.mkdir()
    async with open_store(tmp_path / "data") as store:
        with pytest.raises(BackupError, match="there already"):
            await save(store, archive)
    assert target.read_text() == "content"
    assert sorted(os.listdir(tmp_path)) == ["capi.tar", "data", "precious"]


async def test_a_backup_that_fails_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(4 * 1024 * 1024 - 64 * 1024))
    async with open_store(tmp_path / "data") as store:
        await fill(store)
        with pytest.raises(StorageError):
            await save(store, small_disk / "capi.tar")
        assert os.listdir(small_disk) == ["filler"]
        with pytest.raises(BackupError, match="No such file"):
            await save(store, tmp_path / "nowhere" / "capi.tar")
        await added(store.database, record("d"))


@pytest.mark.parametrize("name", ["capi.db", "config.json", "audit-2026-01-01.jsonl"])
async def test_a_directory_that_is_in_use_is_not_restored_into(tmp_path: Path, name: str) -> None:
    async with open_store(tmp_path / "data") as store:
        await save(store, tmp_path / "capi.tar")
    (tmp_path / "new").mkdir(mode=0o700)
    (tmp_path / "new" / name).write_text("mine")
    with pytest.raises(BackupError, match=f"not empty: it has {name}"):
        unpack(tmp_path / "capi.tar", tmp_path / "new")
    assert (tmp_path / "new" / name).read_text() == "mine"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A backup of a gateway with some history."""

    async def make() -> None:
        async with open_store(tmp_path / "data") as store:
            await fill(store)
            await save(store, tmp_path / "capi.tar")

    trio.run(make)
    return tmp_path / "capi.tar"


def test_damage_anywhere_is_noticed_before_anything_is_in_place(archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    with tarfile.open(archive) as tar:
        places = [info.offset_data + info.size // 2 for info in tar]
    spoiled = [data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :] for place in places]
    spoiled += [data[:length] for length in (0, 1, 511, 512, 5000, len(data) // 2, places[-1])]
    for content in spoiled:
        archive.write_bytes(content)
        with pytest.raises(BackupError):
            unpack(archive, tmp_path / "new")
        assert os.listdir(tmp_path / "new") == ["capi.lock"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", "admin.key.txt", "capi.lock", ".."])
def test_an_archive_puts_no_file_anywhere_else(archive: Path, tmp_path: Path, name: str) -> None:
    def strange(manifest: Manifest) -> Manifest:
        first = manifest.members[0]
        return Manifest(1, NOW, (type(first)(name, first.size, first.sha256), *manifest.members[1:]))

    rewrite(archive, strange, rename=name)
    with pytest.raises(BackupError, match="not capi's"):
        unpack(archive, tmp_path / "new")
    assert not (tmp_path / "evil").exists()
    assert os.listdir(tmp_path / "new") == ["capi.lock"]


def test_another_format_is_refused(archive: Path, tmp_path: Path) -> None:
    rewrite(archive, lambda manifest: Manifest(2, NOW, manifest.members))
    with pytest.raises(BackupError, match="format 2"):
        unpack(archive, tmp_path / "new")


def test_another_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(__file__, "capi.db")
    with pytest.raises(BackupError, match="not a whole backup"):
        unpack(tmp_path / "other.tar", tmp_path / "new")


def rewrite(archive: Path, change: Callable[[Manifest], Manifest], *, rename: str | None = None) -> None:
    """Makes the archive anew with another manifest, and its first file under another name."""
    other = archive.with_suffix(".new")
    with tarfile.open(archive) as old, tarfile.open(other, "w") as new:
        for number, info in enumerate(old):
            content = old.extractfile(info)
            assert content is not None
            data = content.read()
            if info.name == MANIFEST_NAME:
                data = msgspec.json.encode(change(msgspec.json.decode(data, type=Manifest)))
                info.size = len(data)
            if number == 0 and rename is not None:
                info.name = rename
            path = archive.with_suffix(".part")
            path.write_bytes(data)
            with path.open("rb") as file:
                new.addfile(info, file)
    other.replace(archive)


async def test_a_backup_moves_to_postgresql(postgres_server: PostgresServer, tmp_path: Path) -> None:
    """And a restored directory of either engine goes on there, its audit files too."""
    first, second = postgres_server.new_database(), postgres_server.new_database()
    async with open_store(tmp_path / "data", first) as store:
        await fill(store)
        keys = await all_keys(store)
        await save(store, tmp_path / "capi.tar")
    unpack(tmp_path / "capi.tar", tmp_path / "new")
    with DirectoryLock.take(tmp_path / "new") as lock:
        await trio.to_thread.run_sync(load, lock, second)
        with pytest.raises(BackupError, match="not empty"):
            await trio.to_thread.run_sync(load, lock, second)
    async with open_store(tmp_path / "new", second) as store:
        assert await all_keys(store) == keys
        await added(store.database, record("d"))
        await store.audit.drain()
        head = await store.database.read(lambda connection: outbox.head(connection, store.database.stream))
        assert head.written.seq == 5
        assert verify(read_lines(store.directory), until=head.written).ok


async def test_identities_are_in_a_backup_and_their_tokens_are_not(
    backend: Backend, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """As with keys: what opens something is only where it was put."""
    archive = tmp_path / "capi.tar"
    async with open_store(backend.directory, backend.url) as store:
        book = book_of(store, lambda: NOW)
        await book.add(IdentityDraft(name="a", owner="Ann"), Secret("gho_of_no_account"), CLI)
        await book.add(IdentityDraft(name="b"), Secret("gho_of_no_account"), CLI)
        await book.edit("a", IdentityEdit(shared=True, reason="on call"), CLI)
        await book.remove("b", CLI)
        await save(store, archive)
    assert b"gho_of" not in archive.read_bytes()
    unpack(archive, tmp_path / "new")
    async with open_store(tmp_path / "new") as store:
        assert await stored_identities(store) == book.live()
        again = book_of(store, lambda: NOW, seed=1)
        await again.load()
        [problem] = await again.token_problems(again.live())
        assert problem is not None
        assert problem.endswith("identities/a.token cannot be read: No such file or directory")
        await again.add(IdentityDraft(name="b"), Secret("gho_of_no_account"), CLI)
        kept = again.live()
    url = postgres_server.new_database()
    with DirectoryLock.take(tmp_path / "new") as lock:
        await trio.to_thread.run_sync(load, lock, url)
    async with open_store(tmp_path / "new", url) as store:
        assert await stored_identities(store) == kept


async def test_without_a_database_there_is_nothing_to_move(tmp_path: Path) -> None:
    with DirectoryLock.take(tmp_path / "data") as lock, pytest.raises(BackupError, match="restore a backup first"):
        load(lock, "postgresql://host/x")


async def test_a_key_that_follows_one_with_a_later_date_is_copied(backend: Backend, tmp_path: Path) -> None:
    """The clock was set back between them, and one refers to the other."""

    def rotate(connection: sa.Connection) -> Mutation[None]:
        new = record("a", created_at=NOW - 1000)
        KeyRepository(connection).rotate("key_z", new, now_ms=NOW, grace_ms=0)
        return Mutation(None, (draft("key_z", Action.KEY_ROTATE),))

    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record("z"))
        await store.database.mutate(rotate)
        keys = await all_keys(store)
        await save(store, tmp_path / "capi.tar")
    unpack(tmp_path / "capi.tar", tmp_path / "new")
    async with open_store(tmp_path / "new") as store:
        assert await all_keys(store) == keys
