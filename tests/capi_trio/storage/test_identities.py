"""Identities in the database, on both engines."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pytest
import sqlalchemy as sa
from attrs import evolve

from capi_core.audit import Action
from capi_core.identities import IdentityEdit, IdentityRecord, IdentityState
from capi_trio.storage import tables
from capi_trio.storage.database import Database, Mutation
from capi_trio.storage.errors import IdentityConflict, IdentityExists, IdentityNotFound, RowDamaged
from capi_trio.storage.identities import IdentityChange, IdentityRepository
from tests.capi_trio.storage.helpers import NOW, Backend, draft, open_store

T = TypeVar("T")

PLAIN = IdentityRecord(id="idn_plain", name="plain", created_at=NOW, updated_at=NOW)
FULL = IdentityRecord(
    id="idn_full",
    name="full",
    host="octo.ghe.com",
    login="octo-cat",
    owner="Ünïcödé 'owner' \"with\" %s ; --",
    shared=True,
    share_reason="on call",
    state=IdentityState.STOPPED,
    state_reason="quota",
    max_in_flight=3,
    created_at=NOW,
    updated_at=NOW + 1,
)


async def change(database: Database, make: Callable[[IdentityRepository], T]) -> T:
    row = draft("idn_a", Action.IDENTITY_EDIT)
    return await database.mutate(lambda connection: Mutation(make(IdentityRepository(connection)), (row,)))


async def live(database: Database) -> tuple[IdentityRecord, ...]:
    return await database.read(lambda connection: IdentityRepository(connection).live())


async def added(database: Database, *records: IdentityRecord) -> None:
    for record in records:
        await change(database, partial(IdentityRepository.create, record=record))


async def test_identities_come_back_as_they_were_stored_by_name(backend: Backend) -> None:
    dashed = evolve(PLAIN, id="idn_3", name="full-2"), evolve(PLAIN, id="idn_4", name="fulla")
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, PLAIN, FULL, *dashed)
        assert await live(store.database) == (FULL, *dashed, PLAIN)
        for record in (PLAIN, FULL):
            assert await change(store.database, partial(IdentityRepository.get, name=record.name)) == record


async def test_a_name_is_taken_until_its_identity_is_removed(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, PLAIN)
        twin = evolve(PLAIN, id="idn_twin", owner="Ann")
        with pytest.raises(IdentityExists, match="'plain' is there already"):
            await added(store.database, twin)
        assert await live(store.database) == (PLAIN,)
        done = await change(store.database, lambda identities: identities.remove("plain", NOW + 5))
        assert done == IdentityChange(PLAIN, evolve(PLAIN, removed_at=NOW + 5, updated_at=NOW + 5))
        assert await live(store.database) == ()
        await added(store.database, twin)
        assert await live(store.database) == (twin,)
        await change(store.database, lambda identities: identities.remove("plain", NOW + 6))
        await added(store.database, evolve(PLAIN, id="idn_third"))


async def test_what_is_not_there_is_said_so(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, PLAIN)
        await change(store.database, lambda identities: identities.remove("plain", NOW))
        for name in ("plain", "nobody", "%", "' OR 1=1 --"):
            for make in (
                partial(IdentityRepository.get, name=name),
                partial(IdentityRepository.edit, name=name, edit=IdentityEdit(owner="x"), now_ms=NOW),
                partial(IdentityRepository.remove, name=name, now_ms=NOW),
            ):
                with pytest.raises(IdentityNotFound):
                    await change(store.database, make)


async def test_an_edit_changes_what_it_names_and_no_more(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, PLAIN, FULL)
        edit = IdentityEdit(state=IdentityState.ACTIVE, max_in_flight=None)
        done = await change(store.database, lambda identities: identities.edit("full", edit, NOW + 9))
        assert done.before == FULL
        wanted = evolve(FULL, state=IdentityState.ACTIVE, state_reason=None, max_in_flight=None, updated_at=NOW + 9)
        assert done.after == wanted
        assert await live(store.database) == (done.after, PLAIN)


async def test_what_is_so_already_is_a_conflict_and_changes_nothing(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, FULL)
        for edit, why in {
            IdentityEdit(state=IdentityState.STOPPED): "the identity 'full' is stopped already",
            IdentityEdit(shared=True, reason="x"): "the identity 'full' is shared already",
        }.items():
            with pytest.raises(IdentityConflict, match=why):
                await change(store.database, partial(IdentityRepository.edit, name="full", edit=edit, now_ms=NOW + 9))
        assert await live(store.database) == (FULL,)


async def test_a_row_that_means_nothing_is_said_to_be_damaged(backend: Backend) -> None:
    """As a newer capi could have stored, were its state let through."""
    async with open_store(backend.directory, backend.url) as store:
        await added(store.database, PLAIN)

        def spoil(connection: sa.Connection) -> tuple[IdentityRecord, ...]:
            columns = [
                sa.literal("asleep").label("state") if column.name == "state" else column
                for column in tables.identities.columns
            ]
            view = sa.select(*columns).subquery("identities")
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr("capi_trio.storage.identities.identities", view)
                return IdentityRepository(connection).live()

        with pytest.raises(RowDamaged, match="the stored identity 'plain' is damaged"):
            await store.database.read(spoil)
