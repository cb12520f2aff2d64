"""The tables as the code sees them are the tables that the migrations make."""

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from capi_trio.storage.tables import metadata
from tests.capi_trio.storage.helpers import Backend, open_store


async def test_the_migrations_make_exactly_these_tables(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:

        def differences(connection: sa.Connection) -> list[object]:
            return list(compare_metadata(MigrationContext.configure(connection), metadata))

        assert await store.database.read(differences) == []


def test_each_time_is_an_integer_of_64_bits() -> None:
    """Milliseconds since 1970 do not fit 32 bits."""
    times = [
        column
        for table in metadata.sorted_tables
        for column in table.columns
        if column.name == "ts" or column.name.endswith("_at")
    ]
    assert len(times) >= 5
    assert all(isinstance(column.type, sa.BigInteger) for column in times)
