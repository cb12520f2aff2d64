"""Audit rows in the transactions of their changes, on both engines."""

import pytest
import sqlalchemy as sa
import trio
from attrs import evolve

from capi_core.audit import START, Action, AuditDraft, AuditEntry, Link
from capi_core.errors import LocalError
from capi_core.keys import format_key
from capi_trio.storage import outbox
from capi_trio.storage.database import Database, Mutation
from capi_trio.storage.outbox import Head
from tests.capi_trio.storage.helpers import NOW, Backend, added, draft, open_store, record

FULL = AuditDraft(
    ts=NOW,
    action=Action.KEY_EDIT,
    target="key_a",
    actor_key_id="key_admin",
    actor_tier="admin",
    before='{"label": "a"}',
    after='{"label": "b"}',
    ip="127.0.0.1",
    user_agent="curl/8",
    reason="because",
)


async def put(database: Database, *drafts: AuditDraft) -> None:
    await database.mutate(lambda connection: Mutation(None, drafts))


async def pending(database: Database) -> list[AuditEntry]:
    return await database.read(lambda connection: outbox.pending(connection, database.stream, 1000))


async def head(database: Database) -> Head:
    return await database.read(lambda connection: outbox.head(connection, database.stream))


async def test_rows_come_back_numbered_in_order(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        assert await head(store.database) == Head(1, START)
        await put(store.database, FULL, draft("second"))
        await put(store.database, draft("third"))
        entries = await pending(store.database)
        assert [(entry.seq, entry.target) for entry in entries] == [(1, "key_a"), (2, "second"), (3, "third")]
        first = entries[0]
        assert first == AuditEntry(
            seq=1,
            ts=NOW,
            actor_key_id="key_admin",
            actor_tier="admin",
            action=Action.KEY_EDIT,
            target="key_a",
            before=FULL.before,
            after=FULL.after,
            ip="127.0.0.1",
            user_agent="curl/8",
            reason="because",
        )
        assert (await head(store.database)).next_seq == 4


async def test_a_change_that_fails_uses_up_no_number(backend: Backend) -> None:
    """A gap in the file would look like a line that was removed."""
    async with open_store(backend.directory, backend.url) as store:
        await put(store.database, draft())

        def fail(connection: sa.Connection) -> Mutation[None]:
            outbox.put(connection, store.database.stream, (draft("lost"),))
            raise KeyError("changed my mind")

        with pytest.raises(KeyError):
            await store.database.mutate(fail)
        await put(store.database, draft("next"))
        assert [(entry.seq, entry.target) for entry in await pending(store.database)] == [(1, "key_a"), (2, "next")]


async def test_changes_at_once_get_numbers_without_gaps(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(added, store.database, record(f"{number}"))
        assert [entry.seq for entry in await pending(store.database)] == list(range(1, 41))


async def test_what_is_cleared_is_gone_and_its_last_line_remembered(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await put(store.database, draft("a"), draft("b"), draft("c"))
        await store.database.clear_audit(Link(2, "e" * 64))
        assert [entry.target for entry in await pending(store.database)] == ["c"]
        assert await head(store.database) == Head(4, Link(2, "e" * 64))
        await store.database.clear_audit(Link(3, "f" * 64))
        await put(store.database, draft("d"))
        assert [entry.seq for entry in await pending(store.database)] == [4]
        await store.database.renumber_audit(Link(3, "f" * 64))  # as it is


async def test_renumbered_rows_follow_the_given_line(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await put(store.database, draft("a"), draft("b"))
        await store.database.renumber_audit(Link(10, "e" * 64))
        assert [(entry.seq, entry.target) for entry in await pending(store.database)] == [(11, "a"), (12, "b")]
        assert await head(store.database) == Head(13, Link(10, "e" * 64))
        # So that what the audit writer does at the end finds its place.
        await store.database.renumber_audit(START)


async def test_an_empty_stream_can_go_on_after_a_line(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await store.database.renumber_audit(Link(7, "e" * 64))
        assert await head(store.database) == Head(8, Link(7, "e" * 64))


async def test_streams_know_nothing_of_each_other(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await put(store.database, draft("mine"))

        def other(connection: sa.Connection) -> Mutation[None]:
            outbox.put(connection, "other", (draft("theirs"),))
            outbox.clear(connection, "other", Link(1, "e" * 64))
            return Mutation(None, (draft("mine too"),))

        await store.database.mutate(other)
        assert [entry.target for entry in await pending(store.database)] == ["mine", "mine too"]


async def test_no_text_from_outside_makes_a_change_fail(backend: Backend) -> None:
    hostile = "a\x00b\ud800c\x1b[31m\u2028\n" + "x" * 100_000
    async with open_store(backend.directory, backend.url) as store:
        await put(store.database, evolve(FULL, user_agent=hostile, reason=hostile, target=hostile, ip=hostile))
        (entry,) = await pending(store.database)
        assert entry.user_agent is not None
        assert entry.user_agent.startswith("a\ufffdb?c\x1b[31m\u2028\n")
        assert len(entry.user_agent) < 10_000


async def test_a_key_typed_into_the_wrong_field_is_not_stored(backend: Backend) -> None:
    """`grep sk-cap-` over the data directory finds nothing."""
    key = format_key(bytes(range(32)))
    async with open_store(backend.directory, backend.url) as store:
        state = f'{{"label":"{key}"}}'
        await put(store.database, evolve(FULL, reason=key, target=key, user_agent=key, before=state, after=state))
        assert "sk-cap-" not in repr(await pending(store.database))
        await store.audit.drain()
    for path in backend.directory.iterdir():
        assert b"sk-cap-" not in path.read_bytes()


@pytest.mark.parametrize("ts", [-1, 253_402_300_800_000])
def test_a_time_without_a_date_is_the_callers_fault(ts: int) -> None:
    with pytest.raises(LocalError, match="1970 to 9999"):
        draft(ts=ts)
