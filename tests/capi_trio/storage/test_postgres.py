"""What only PostgreSQL can do: be far away, be restarted, have several replicas."""

from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from capi_trio.storage import postgres, tables
from capi_trio.storage.database import Mutation
from capi_trio.storage.errors import (
    CommitUnknown,
    DatabaseError,
    DatabaseLocked,
    DatabaseReadOnly,
    DatabaseUnavailable,
    DriverMissing,
)
from capi_trio.storage.keys import KeyRepository
from tests.capi_trio.storage.conftest import PostgresServer
from tests.capi_trio.storage.helpers import added, draft, open_store, record, row_count


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_the_usual_spellings_of_an_address(scheme: str) -> None:
    url = postgres.address(f"{scheme}://user:secret@host:5433/name")
    assert url.drivername == "postgresql+psycopg"
    assert postgres.display(url) == "postgresql://user@host:5433/name"


@pytest.mark.parametrize(
    "text", ["", "capi.db", "mysql://user:secret@host/x", "postgresql:secret", "://secret", "http://[secret"]
)
def test_another_address_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="postgresql://user@host/name") as raised:
        postgres.address(text)
    assert "secret" not in str(raised.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(*_: object, **__: object) -> sa.Engine:
        raise ModuleNotFoundError("psycopg")

    monkeypatch.setattr(sa, "create_engine", no_driver)
    with pytest.raises(DriverMissing, match=r"pip install 'capi-gateway\[postgres\]'"):
        postgres.prepare(postgres.address("postgresql://host/x"))


async def test_a_server_that_is_not_there_is_said_so_without_the_password(tmp_path: Path) -> None:
    with pytest.RaisesGroup(DatabaseUnavailable, allow_unwrapped=True, flatten_subgroups=True) as raised:
        async with open_store(tmp_path / "data", f"postgresql://capi:secret@/x?host={tmp_path}"):
            pass
    assert "secret" not in str(raised.value)


async def test_readers_are_read_only_and_see_one_state(postgres_server: PostgresServer, tmp_path: Path) -> None:
    async with open_store(tmp_path / "data", postgres_server.new_database()) as store:

        def settings(connection: sa.Connection) -> list[object]:
            names = ("transaction_read_only", "transaction_isolation", "lock_timeout")
            return [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names]

        assert await store.database.read(settings) == ["on", "repeatable read", "5s"]
        with pytest.raises(DatabaseReadOnly):
            await store.database.read(lambda connection: connection.execute(tables.keys.delete()).rowcount)


async def test_an_acknowledged_change_is_on_disk_whatever_the_servers_default(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_server.new_database()
    name = sa.make_url(url).database
    for default, expected in (("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")):
        postgres_server.execute(f"ALTER DATABASE {name} SET synchronous_commit = {default}")

        def mode(connection: sa.Connection) -> Mutation[object]:
            return Mutation(connection.exec_driver_sql("SHOW synchronous_commit").scalar_one(), (draft(),))

        async with open_store(tmp_path / "data", url) as store:
            assert await store.database.mutate(mode) == expected


async def test_a_lock_that_is_not_given_back_is_said_to_be_one(postgres_server: PostgresServer, tmp_path: Path) -> None:
    url = postgres_server.new_database()
    async with open_store(tmp_path / "data", url) as store:
        other = postgres.writer_engine(postgres.address(url))
        with other.begin(), pytest.raises(DatabaseLocked):
            await added(store.database, record())
        other.dispose()
        await added(store.database, record())


async def test_replicas_keep_the_audit_files_of_their_own_changes(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = postgres_server.new_database()
    async with open_store(tmp_path / "one", url) as one, open_store(tmp_path / "two", url) as two:
        async with trio.open_nursery() as nursery:
            for name in "abcdefgh":
                nursery.start_soon(added, one.database, record(f"one_{name}"))
                nursery.start_soon(added, two.database, record(f"two_{name}"))
        assert await one.audit.drain() == await two.audit.drain() == 8
        assert await row_count(one.database, "keys") == 16
        assert await row_count(one.database, "audit_outbox") == 0


async def test_a_restart_of_the_server_costs_at_most_the_calls_under_way(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """D8: connections that died unused are replaced before they are used."""
    async with open_store(tmp_path / "data", postgres_server.new_database()) as store:
        await added(store.database, record("before"))
        await trio.to_thread.run_sync(postgres_server.stop)
        with pytest.raises(DatabaseUnavailable):
            await added(store.database, record("while"))
        await trio.to_thread.run_sync(postgres_server.start)
        await added(store.database, record("after"))
        page = await store.database.read(lambda connection: KeyRepository(connection).list())
        assert {key.id for key in page.keys} == {"key_before", "key_after"}
        assert await store.audit.drain() == 2


@pytest.mark.parametrize("phase", ["before the change", "after the change"])
async def test_a_connection_that_dies_before_the_commit_leaves_nothing(
    postgres_server: PostgresServer, tmp_path: Path, phase: str
) -> None:
    async with open_store(tmp_path / "data", postgres_server.new_database()) as store:

        def change(connection: sa.Connection) -> Mutation[None]:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            if phase == "after the change":
                KeyRepository(connection).create(record())
            postgres_server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
            KeyRepository(connection).create(record("b"))
            return Mutation(None, (draft(),))

        with pytest.raises(DatabaseUnavailable):
            await store.database.mutate(change)
        assert await row_count(store.database, "keys") == 0
        assert await store.audit.drain() == 0
        await added(store.database, record())


async def test_a_connection_that_dies_in_the_commit_is_said_to_leave_it_open(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """The caller chose the id, so that it can look."""
    async with open_store(tmp_path / "data", postgres_server.new_database()) as store:

        def kill(connection: sa.Connection) -> None:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            postgres_server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")

        writer = store.database._writer
        sa.event.listen(writer, "commit", kill, once=True)
        with pytest.raises(CommitUnknown):
            await added(store.database, record())
        assert await row_count(store.database, "keys") == 0
        await added(store.database, record())


async def test_errors_never_quote_values(postgres_server: PostgresServer, tmp_path: Path) -> None:
    """They end up in logs."""
    async with open_store(tmp_path / "data", postgres_server.new_database()) as store:

        def spoil(connection: sa.Connection) -> Mutation[None]:
            connection.execute(tables.keys.update().values(label="secret", allowed_models="not json"))
            return Mutation(None, (draft(),))

        await added(store.database, record())
        with pytest.raises(DatabaseError) as raised:
            await store.database.mutate(spoil)
        assert "secret" not in str(raised.value)
