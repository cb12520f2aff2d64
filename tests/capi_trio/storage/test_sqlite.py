"""SQLite files: made whole, private, judged before use, and written by one connection."""

import os
import random
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from capi_trio.storage import migrations, sqlite
from capi_trio.storage.errors import (
    DatabaseCorrupt,
    DatabaseError,
    DatabaseReadOnly,
    DatabaseTooNew,
    DatabaseUnavailable,
    RowDamaged,
    UnsafePath,
    translated,
)
from capi_trio.storage.keys import KeyRepository
from tests.capi_trio.storage.children import Forker, wait_for
from tests.capi_trio.storage.helpers import file_contents, record
from tests.support.scale import FULL

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database may be made."""
    (tmp_path / "data").mkdir(mode=0o700)
    return tmp_path / "data" / sqlite.DATABASE_NAME


@pytest.fixture
def whole(path: Path) -> Path:
    """A database with some keys in it, in one file."""
    sqlite.prepare(path)
    engine = sqlite.writer_engine(path)
    with engine.begin() as connection:
        for number in range(200):
            KeyRepository(connection).create(record(f"{number}"))
    sqlite.checkpoint(engine)
    engine.dispose()
    assert os.listdir(path.parent) == [path.name]
    return path


@pytest.fixture
def engines(whole: Path) -> Iterator[tuple[sa.Engine, sa.Engine]]:
    writer, reader = sqlite.writer_engine(whole), sqlite.reader_engine(whole, 2)
    writer.connect().close()
    yield writer, reader
    reader.dispose()
    writer.dispose()


def pragma(connection: sa.Connection, name: str) -> object:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


def test_all_files_are_for_the_owner_only_under_any_umask(path: Path) -> None:
    previous = os.umask(0)
    try:
        sqlite.prepare(path)
        engine = sqlite.writer_engine(path)
        with engine.begin() as connection:
            KeyRepository(connection).create(record())
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        engine.dispose()
    finally:
        os.umask(previous)
    assert modes == {"capi.db": 0o600, "capi.db-wal": 0o600, "capi.db-shm": 0o600}


def test_the_writer_syncs_each_commit_and_logs_ahead(engines: tuple[sa.Engine, sa.Engine]) -> None:
    with engines[0].connect() as connection:
        wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "temp_store": 2, "busy_timeout": 5000}
        assert {name: pragma(connection, name) for name in wanted} == wanted


def test_memory_mapping_is_off(engines: tuple[sa.Engine, sa.Engine]) -> None:
    """A damaged page must be an error, not a signal."""
    for engine in engines:
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA mmap_size").scalar() in (0, None)


def test_readers_cannot_write_nor_checkpoint(engines: tuple[sa.Engine, sa.Engine], whole: Path) -> None:
    writer, reader = engines
    with writer.begin() as connection:
        KeyRepository(connection).create(record("new"))
    log = whole.with_name(whole.name + "-wal").stat().st_size
    assert log > 0
    with reader.connect() as connection:
        assert pragma(connection, "query_only") == 1
        assert pragma(connection, "wal_autocheckpoint") == 0
        for statement in ("DELETE FROM keys", "CREATE TABLE x (y)", "PRAGMA user_version = 7", "VACUUM"):
            with pytest.raises(exc.OperationalError, match=r"readonly|within a transaction"):
                connection.exec_driver_sql(statement)
    with closing(sqlite.connect(whole, mode="ro", setup=("PRAGMA query_only = 1",))) as raw:
        try:
            outcome = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError:
            outcome = (1,)
        assert outcome[0] == 1
    assert whole.with_name(whole.name + "-wal").stat().st_size == log


def test_a_writing_transaction_has_the_lock_from_its_start(whole: Path) -> None:
    """A lock that is taken at the first write can fail after the reads, whatever the timeout."""
    writer = sqlite.writer_engine(whole)
    with (
        writer.begin(),
        closing(sqlite.connect(whole, setup=("PRAGMA busy_timeout = 0",))) as other,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        other.execute("BEGIN IMMEDIATE")
    writer.dispose()


def test_the_writer_is_one_connection(whole: Path) -> None:
    engine = sqlite.writer_engine(whole)
    assert engine.pool.status().startswith("Pool size: 1 ")
    engine.dispose()


def test_preparing_twice_changes_nothing(whole: Path) -> None:
    before = whole.read_bytes()
    sqlite.prepare(whole)
    assert whole.read_bytes() == before


def test_an_unfinished_database_is_made_anew(path: Path) -> None:
    """What a kill in the middle of making one leaves behind."""
    for end in ("", "-wal", "-shm", "-journal"):
        path.with_name(f"{path.name}.new{end}").write_bytes(b"half")
    sqlite.prepare(path)
    assert os.listdir(path.parent) == [path.name]


def test_a_path_with_characters_of_addresses(tmp_path: Path) -> None:
    path = tmp_path / "50% off?mode=memory#x" / sqlite.DATABASE_NAME
    path.parent.mkdir(mode=0o700)
    sqlite.prepare(path)
    assert path.stat().st_size > 0


# What is refused. No refusal leaves a changed file, and none a new empty database.


def refused(path: Path, kind: type[Exception]) -> str:
    before = file_contents(path.parent)
    with pytest.raises(kind) as raised:
        sqlite.prepare(path)
    assert {name: data for name, data in file_contents(path.parent).items() if not name.endswith("-shm")} == before
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_an_empty_file_is_refused(path: Path) -> None:
    path.touch(0o600)
    assert "restore a backup" in refused(path, DatabaseCorrupt)


def test_a_log_without_its_database_is_refused(whole: Path) -> None:
    """A new database there would be written over by the old one's log."""
    whole.rename(whole.with_name("capi.db-wal"))
    assert "missing" in refused(whole, DatabaseCorrupt)


@pytest.mark.parametrize("content", [b"x", b"SQLite format 3\0", b"not a database " * 1000, bytes(8192)])
def test_what_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path, DatabaseCorrupt)


def test_another_programs_database_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url)")
    assert "not a database of capi" in refused(path, DatabaseCorrupt)


def test_a_newer_database_is_refused(whole: Path) -> None:
    with closing(sqlite3.connect(whole)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute(f"PRAGMA user_version = {migrations.head() + 1}")
    with pytest.raises(DatabaseTooNew, match="newer capi"):
        sqlite.prepare(whole)


@pytest.mark.parametrize("name", ["capi.db", "capi.db-wal", "capi.db-shm"])
def test_a_link_in_place_of_a_file_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "precious"
    target.write_bytes(whole.read_bytes())
    planted = whole.with_name(name)
    planted.unlink(missing_ok=True)
    planted.symlink_to(target)
    with pytest.raises(UnsafePath, match=name):
        sqlite.prepare(whole)
    planted.unlink()
    planted.hardlink_to(target)
    with pytest.raises(UnsafePath, match=name):
        sqlite.prepare(whole)


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(UnsafePath, match="regular"):
        sqlite.prepare(path)


@pytest.mark.slow
def test_damage_is_refused_or_does_no_harm(whole: Path) -> None:
    """D4: random damages. What can be noticed is a typed error that names the file, never another exception.

    SQLite has no checksums, so damage to unused space or within a text goes unseen; it never makes a database empty.
    Nor are the tables of figures looked at, which are a quarter of this file.
    """
    dice = random.Random(4)
    original = whole.read_bytes()
    outcomes = {"refused": 0, "same": 0, "altered": 0}
    for _ in range(1_000 if FULL else 250):
        data = bytearray(original)
        if dice.random() < 0.2:
            del data[dice.randrange(len(data)) :]
        else:
            at = dice.randrange(len(data) // 512) * 512
            data[at : at + 512] = dice.randbytes(512) if dice.random() < 0.5 else bytes(512)
        for file in whole.parent.iterdir():
            file.unlink()
        whole.write_bytes(data)
        whole.chmod(0o600)
        outcomes[_use(whole)] += 1
    assert outcomes["refused"] >= 120, outcomes
    assert outcomes["altered"] <= 12, outcomes


def _use(path: Path) -> str:
    try:
        sqlite.prepare(path)
        reader = sqlite.reader_engine(path, 1)
        try:
            with translated(str(path)), reader.connect() as connection:
                keys = KeyRepository(connection).list(limit=1000).keys
        finally:
            reader.dispose()
    except RowDamaged:
        return "refused"
    except DatabaseError as error:
        return "refused" if error.where == str(path) else "names another file"
    assert len(keys) == 200
    return "same" if set(keys) == {record(f"{number}") for number in range(200)} else "altered"


@needs_root
def test_a_read_only_disk_is_said_to_be_one(whole: Path, mount_read_only: None) -> None:
    with pytest.raises(DatabaseReadOnly, match="read-only"):
        sqlite.prepare(whole)


@pytest.fixture
def mount_read_only(whole: Path) -> Iterator[None]:
    """The database's directory, as it looks after an error of the disk."""
    for arguments in (["--bind", str(whole.parent), str(whole.parent)], ["-o", "remount,ro,bind", str(whole.parent)]):
        subprocess.run(["mount", *arguments], check=True)  # noqa: S603, S607
    yield
    subprocess.run(["umount", str(whole.parent)], check=True)  # noqa: S603, S607


def test_a_place_without_a_log_is_refused(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SQLite cannot use its log it answers with the old mode, and no error: as for a database in memory."""
    monkeypatch.setattr(sqlite, "connect", lambda path: sqlite3.connect(":memory:", check_same_thread=False))
    engine = sqlite.writer_engine(whole)
    with pytest.raises(DatabaseUnavailable, match="local disk"):
        engine.connect()
    engine.dispose()


def test_an_index_that_lacks_a_row_is_damage(whole: Path) -> None:
    """The look-up by hash would not find a key that is there, revoked or not."""
    with closing(sqlite3.connect(whole)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = sql || ' WHERE id > 1' WHERE name = 'keys_newest'")
        connection.commit()
    with closing(sqlite3.connect(whole)) as connection:
        connection.execute("INSERT INTO keys SELECT '0', replace(hash, 'a', 'b'), tier, label, owner, identity, "
            "allowed_models, 1, NULL, NULL, NULL, NULL, NULL, created_at, NULL, NULL FROM keys LIMIT 1")  # fmt: skip
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' WHERE id > 1', '') WHERE name='keys_newest'")
        connection.commit()
    with pytest.raises(DatabaseCorrupt, match="table keys"):
        sqlite.prepare(whole)


def test_figures_are_not_read_through_at_the_start(whole: Path) -> None:
    """There may be gigabytes of them, and nobody is let in or kept out by what they say."""
    with closing(sqlite3.connect(whole)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = sql || ' WHERE ts > 1' WHERE name = 'usage_events_ts'")
        connection.commit()
    with closing(sqlite3.connect(whole)) as connection:
        connection.execute("INSERT INTO usage_events (id, ts, request_id, key_id, operation, transport, stream, "
            "client_protocol, usage_source, outcome, latency_ms, losses, failed_upstreams) "
            "VALUES (1, 1, 'r', 'k', 'chat', 'http', 0, 'chat', 'none', 'ok', 1, 0, 0)")  # fmt: skip
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' WHERE ts > 1', '') WHERE name LIKE 'usage%'")
        connection.commit()
    with closing(sqlite3.connect(whole)) as connection:
        assert connection.execute("PRAGMA integrity_check(usage_events)").fetchone() != ("ok",)
    sqlite.prepare(whole)


def test_a_database_cannot_be_made_where_no_file_can(tmp_path: Path) -> None:
    with pytest.raises((DatabaseUnavailable, UnsafePath), match=r"capi\.db"):
        sqlite.prepare(tmp_path / "nowhere" / sqlite.DATABASE_NAME)


# The defect of SQLite before 3.51.3.


def test_versions_with_the_defect_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, has_it in (((3, 40, 1), True), ((3, 51, 2), True), ((3, 51, 3), False), ((3, 52, 0), False)):
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        assert sqlite.has_wal_reset_bug() is has_it


def test_another_process_that_has_the_file_is_seen(whole: Path, tmp_path: Path) -> None:
    assert not sqlite.open_elsewhere(whole)
    with Forker() as forker:
        pid = forker.start("connect", whole.parent, acks=str(tmp_path / "acks"))
        wait_for(tmp_path / "acks")
        assert sqlite.open_elsewhere(whole)
        os.kill(pid, 9)
        forker.wait()
    assert not sqlite.open_elsewhere(whole)


# --- the size of the log ---


def fill(writer: sa.Engine, rows: int) -> None:
    with writer.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS filler (text TEXT)")
        for _ in range(rows):
            connection.exec_driver_sql("INSERT INTO filler VALUES (hex(zeroblob(4000)))")


def log_size(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


def test_a_log_past_its_bound_is_made_to_start_anew(engines: tuple[sa.Engine, sa.Engine], whole: Path) -> None:
    writer, _ = engines
    bound = sqlite.LogBound(whole, limit=100_000)
    fill(writer, 1)
    before = log_size(whole)
    bound.after_commit(writer)
    assert log_size(whole) == before > 0
    fill(writer, 20)
    bound.after_commit(writer)
    assert log_size(whole) == 0


def test_a_reader_that_stays_is_not_cut_off_nor_waited_for_at_every_change(
    engines: tuple[sa.Engine, sa.Engine], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, readers = engines
    tried: list[int] = []
    monkeypatch.setattr(sqlite, "_BUSY_S", 0.05)
    monkeypatch.setattr(sqlite, "_RETRY_S", 1.0)  # one look for each attempt
    monkeypatch.setattr(time, "sleep", lambda _: tried.append(log_size(whole)))
    bound = sqlite.LogBound(whole, limit=100_000)
    with readers.begin() as reader:
        reader.exec_driver_sql("SELECT count(*) FROM sqlite_master")
        for _ in range(10):
            fill(writer, 10)
            bound.after_commit(writer)
    assert 1 < len(set(tried)) < 5  # of ten changes
    assert all(later >= 2 * earlier for earlier, later in pairwise(sorted(set(tried))))


def test_a_log_that_cannot_be_looked_at_is_left_alone(engines: tuple[sa.Engine, sa.Engine], whole: Path) -> None:
    writer, _ = engines
    sqlite.LogBound(whole.with_name("gone.db")).after_commit(writer)
