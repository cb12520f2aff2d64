"""Keys in the database, on both engines."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

import pytest
import sqlalchemy as sa
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from capi_core.keys import Budget, BudgetPeriod, BudgetUnit, KeyEdit, KeyRecord, Tier
from capi_trio.storage import tables
from capi_trio.storage.database import Database, Mutation
from capi_trio.storage.errors import DatabaseError, KeyExists, KeyNotActive, KeyNotFound, RowDamaged
from capi_trio.storage.keys import Cursor, KeyPage, KeyRepository
from tests.capi_trio.storage.helpers import NOW, Backend, added, draft, open_store, record, revoked

T = TypeVar("T")

FULL = KeyRecord(
    id="key_full",
    hash="f" * 64,
    tier=Tier.CLIENT,
    label="Ünïcödé 'label' \"with\" %s ; --",
    owner="someone",
    identity="work",
    allowed_models=("gpt-4o", "claude-x"),
    rate_limit_override=120,
    budget=Budget(BudgetUnit.MONEY, 5_000_000, BudgetPeriod.MONTH),
    expires_at=NOW + 1000,
    debug_expires_at=NOW + 10,
    created_at=NOW,
)


async def read(database: Database, query: Callable[[KeyRepository], T]) -> T:
    return await database.read(lambda connection: query(KeyRepository(connection)))


async def get(database: Database, key_id: str) -> KeyRecord:
    return await read(database, lambda keys: keys.get(key_id))


async def find(database: Database, key_hash: str) -> KeyRecord | None:
    return await read(database, lambda keys: keys.by_hash(key_hash))


async def list_page(database: Database, after: Cursor | None, limit: int) -> KeyPage:
    return await read(database, lambda keys: keys.list(after=after, limit=limit))


async def change(database: Database, make: Callable[[KeyRepository], T]) -> T:
    return await database.mutate(lambda connection: Mutation(make(KeyRepository(connection)), (draft(),)))


async def test_a_key_comes_back_as_it_was_stored(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        for key in (FULL, record("plain"), evolve(record("admin"), tier=Tier.ADMIN, rate_limit_override=None)):
            await added(store.database, key)
            assert await get(store.database, key.id) == key
            assert await find(store.database, key.hash) == key


async def test_a_look_up_takes_the_whole_hash_and_nothing_else(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, FULL)
        for wrong in ("f" * 63, "f" * 65, "F" * 64, "f" * 63 + "e", "", "%", "_" * 64, "' OR 1=1 --", FULL.id):
            assert await find(store.database, wrong) is None


@pytest.mark.parametrize("field", ["id", "hash"])
async def test_a_second_key_of_the_same_id_or_text_is_refused(backend: Backend, field: str) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record("a"))
        twin = evolve(record("b"), **{field: getattr(record("a"), field)})
        with pytest.raises(KeyExists):
            await added(store.database, twin)
        assert (await read(store.database, lambda keys: keys.list())).keys == (record("a"),)
        await added(store.database, record("b"))


async def test_what_is_not_there_is_said_so(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        for make in (
            lambda keys: keys.get("nope"),
            lambda keys: keys.edit("nope", KeyEdit(label="x")),
            lambda keys: keys.revoke("nope", NOW),
            lambda keys: keys.rotate("nope", record("b"), now_ms=NOW, grace_ms=0),
        ):
            with pytest.raises(KeyNotFound):
                await change(store.database, make)


async def test_pages_go_from_the_newest_to_the_oldest_and_miss_none(backend: Backend) -> None:
    # Three keys of each instant, so that pages begin between equal times too.
    stored = [record(f"{n:02}", created_at=NOW + n // 3) for n in range(20)]
    async with open_store(backend.directory, backend.url) as store:
        for key in stored:
            await added(store.database, key)
        for size in (1, 2, 3, 7, 19, 20, 21):
            seen: list[KeyRecord] = []
            page = await list_page(store.database, None, size)
            seen += page.keys
            while page.next is not None:
                assert len(page.keys) == size
                page = await list_page(store.database, page.next, size)
                seen += page.keys
            assert seen == sorted(stored, key=lambda key: (key.created_at, key.id), reverse=True)


async def test_a_page_of_no_keys_has_none_after_it(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        page = await read(store.database, lambda keys: keys.list(limit=0))
        assert (page.keys, page.next) == ((), None)


async def test_an_edit_changes_what_it_names_and_no_more(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, FULL)
        edit = KeyEdit(label="new", allowed_models=["*"], budget=None)
        made = await change(store.database, lambda keys: keys.edit(FULL.id, edit))
        assert made.before == FULL
        assert made.after == evolve(FULL, label="new", allowed_models=("*",), budget=None)
        assert await read(store.database, lambda keys: keys.get(FULL.id)) == made.after


async def test_a_revoked_key_stays_as_it_is(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record("a"))
        await revoked(store.database, "key_a", NOW + 5)
        ended = evolve(record("a"), revoked_at=NOW + 5)
        for make in (
            lambda keys: keys.revoke("key_a", NOW + 6),
            lambda keys: keys.edit("key_a", KeyEdit(label="x")),
            lambda keys: keys.rotate("key_a", record("b"), now_ms=NOW, grace_ms=0),
        ):
            with pytest.raises(KeyNotActive):
                await change(store.database, make)
        assert (await read(store.database, lambda keys: keys.list())).keys == (ended,)


async def test_rotation_puts_a_new_key_in_place_and_gives_the_old_one_its_grace(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, record("old"))
        # The clock may have been set back since the old key was made.
        new = record("new", created_at=NOW - 50)
        made = await change(store.database, lambda keys: keys.rotate("key_old", new, now_ms=NOW, grace_ms=100))
        assert made.after == evolve(record("old"), expires_at=NOW + 100)
        assert await read(store.database, lambda keys: keys.get("key_old")) == made.after
        stored = await read(store.database, lambda keys: keys.by_hash(new.hash))
        assert stored == evolve(new, rotated_from="key_old")


async def test_rotation_refuses_an_expired_key_another_tier_and_a_known_text(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, evolve(record("gone"), expires_at=NOW))
        await added(store.database, record("old"))
        before = await read(store.database, lambda keys: keys.list())
        with pytest.raises(KeyNotActive, match="expired"):
            await change(store.database, lambda keys: keys.rotate("key_gone", record("b"), now_ms=NOW, grace_ms=0))
        with pytest.raises(KeyNotActive, match="tier"):
            await change(
                store.database,
                lambda keys: keys.rotate("key_old", record("b", tier=Tier.ADMIN), now_ms=NOW, grace_ms=0),
            )
        with pytest.raises(KeyExists):
            await change(store.database, lambda keys: keys.rotate("key_old", record("gone"), now_ms=NOW, grace_ms=0))
        assert await read(store.database, lambda keys: keys.list()) == before


async def test_active_admins_are_the_admin_keys_that_open_something(backend: Backend) -> None:
    admins = {name: record(name, tier=Tier.ADMIN) for name in ("lasting", "expiring", "expired", "revoked")}
    admins["expiring"] = evolve(admins["expiring"], expires_at=NOW + 1)
    admins["expired"] = evolve(admins["expired"], expires_at=NOW)
    async with open_store(backend.directory, backend.url) as store:
        for key in (*admins.values(), record("client")):
            await added(store.database, key)
        await revoked(store.database, "key_revoked")
        found = await read(store.database, lambda keys: keys.active_admins(NOW))
        assert found == (admins["expiring"], admins["lasting"])


@given(label=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
def test_any_text_is_stored_as_data(label: str) -> None:
    """Nothing in a value is ever read as SQL."""
    with closing(sqlite3.connect(":memory:")) as raw:
        engine = sa.create_engine("sqlite://", creator=lambda: raw, poolclass=sa.StaticPool)
        tables.metadata.create_all(engine)
        with engine.begin() as connection:
            keys = KeyRepository(connection)
            keys.create(evolve(record("a"), label=label, owner=label, allowed_models=(label,)))
            assert keys.get("key_a").label == label
            assert keys.get("key_a").allowed_models == (label,)
            assert keys.by_hash(label) is None


async def test_damaged_values_are_refused_by_the_database_itself(backend: Backend) -> None:
    """Whatever writes there: what is read back can be understood."""
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, FULL)
        broken: list[dict[str, object]] = [
            {"allowed_models": "[not json"},
            {"tier": "root"},
            {"hash": "abc"},
            {"budget_amount": None},
            {"rate_limit_override": 0},
            {"rotated_from": "nobody"},
        ]
        for values in broken:

            def spoil(connection: sa.Connection, values: dict[str, object] = values) -> Mutation[None]:
                connection.execute(tables.keys.update().values(**values))
                return Mutation(None, (draft(),))

            with pytest.raises((IntegrityError, DatabaseError), match=r"(?i)constraint|json"):
                await store.database.mutate(spoil)
        assert await read(store.database, lambda keys: keys.get(FULL.id)) == FULL


async def test_a_row_that_means_nothing_is_said_to_be_damaged(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, FULL)
        for values in ({"allowed_models": "{}"}, {"allowed_models": "[1]"}, {"budget_unit": "gold"}):

            def spoil(connection: sa.Connection, values: dict[str, str] = values) -> Mutation[None]:
                connection.execute(tables.keys.update().values(**values))
                return Mutation(None, (draft(),))

            await store.database.mutate(spoil)
            with pytest.raises(RowDamaged, match=FULL.id):
                await read(store.database, lambda keys: keys.by_hash(FULL.hash))
