"""Rows of requests and sums of minutes, on both engines: stored together, once, and without anybody's text."""

import os
import random
import signal
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest
import sqlalchemy as sa
import trio
from attrs import evolve
from structlog.testing import capture_logs

from capi_core.budgets import Amounts
from capi_core.commands import Outcome
from capi_core.keys import KEY_PREFIX
from capi_core.rollups import RollupKey, UsageRollup, fold, merge_all
from capi_core.usage import UsageSource
from capi_core.usage_events import UsageEvent
from capi_trio.clock import random_bytes
from capi_trio.recorder import Recorder, UsageSink
from capi_trio.storage.database import Database, Mutation
from capi_trio.storage.errors import CommitUnknown, DatabaseError, RowDamaged
from capi_trio.storage.tables import usage_events, usage_minutes
from capi_trio.storage.usage import UsageBatch, UsageRepository, storable
from tests.capi_trio.storage.children import Forker
from tests.capi_trio.storage.conftest import PostgresServer
from tests.capi_trio.storage.helpers import Backend, draft, open_store, row_count
from tests.support.usage_rows import MINUTE, refusal, usage_event

KILL_ROUNDS = int(os.environ.get("CAPI_KILL_ROUNDS", "5"))
EVER = 2**62

T = TypeVar("T")


async def stored_ids(database: Database) -> list[str]:
    """The requests with a row, in the order in which they were stored."""
    query = sa.select(usage_events.c.request_id).order_by(usage_events.c.id)
    return await database.read(lambda connection: list(connection.execute(query).scalars()))


async def rollups(database: Database, key_id: str | None = None) -> dict[RollupKey, UsageRollup]:
    return dict(await database.read(lambda connection: UsageRepository(connection).rollups(-EVER, EVER, key_id=key_id)))


async def append(database: Database, name: str, events: Iterable[UsageEvent]) -> None:
    await database.store_usage(UsageBatch(name, tuple(events)))


async def write(database: Database, work: Callable[[sa.Connection], T]) -> T:
    """Does what no method of a database does. What it leaves in the audit is of no concern here."""
    return await database.mutate(lambda connection: Mutation(work(connection), (draft(),)))


async def rows(database: Database, statement: str) -> list[dict[str, object]]:
    return await database.read(
        lambda connection: [dict(row) for row in connection.execute(sa.text(statement)).mappings()]
    )


def assorted(count: int, seed: int) -> list[UsageEvent]:
    """Requests of several minutes, keys, models and outcomes."""
    dice = random.Random(seed)
    return [
        usage_event(
            f"{seed}_{number}",
            ts_ms=MINUTE + dice.randrange(-120_000, 120_000),
            key_id=dice.choice(["key_a", "key_b", "key_ü"]),
            model=dice.choice(["fast", "Fast", None]),
            upstream=dice.choice(["copilot", None]),
            latency_ms=dice.lognormvariate(6, 2),
            ttft_ms=dice.choice([None, 12.0]),
            outcome=dice.choice([Outcome.OK, Outcome.TIMEOUT, Outcome.CLIENT_GONE]),
        )
        for number in range(count)
    ]


async def test_a_request_comes_back_as_it_was_told(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await append(store.database, "a", [usage_event(1), refusal(2, model=None, owner=None)])
        first, second = await rows(store.database, "SELECT * FROM usage_events ORDER BY id")
    assert first == {
        "id": 1, "ts": MINUTE + 1, "request_id": "req_1", "key_id": "key_a", "owner": "Ann", "identity": "seat",
        "operation": "messages", "transport": "http", "stream": True, "client_protocol": "messages",
        "upstream": "copilot", "upstream_protocol": "chat", "model": "fast", "upstream_model": "gpt-4.1",
        "uncached_input": 100, "cache_read": 20, "cache_write": 3, "output": 40, "reasoning": 5,
        "usage_source": "upstream_final", "status": 200, "outcome": "ok", "ttft_ms": 120, "latency_ms": 901,
        "queue_ms": 0, "losses": 1, "failed_upstreams": 2, "cost_micros": 777,
    }  # fmt: skip
    untold = {name for name, value in second.items() if value is None}
    assert untold == {
        "owner", "identity", "upstream", "upstream_protocol", "model", "upstream_model", "uncached_input", "cache_read",
        "cache_write", "output", "reasoning", "ttft_ms", "queue_ms", "cost_micros",
    }  # fmt: skip
    assert (second["id"], second["outcome"], second["usage_source"]) == (2, "refused_rate", "none")


async def test_the_view_events_has_the_columns_of_the_older_schema(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        partly = usage_event(3, usage_source=UsageSource.UPSTREAM_PARTIAL, outcome=Outcome.UPSTREAM_BROKE)
        await append(store.database, "a", [usage_event(1), refusal(2, model=None, status=None), partly])
        first, second, third = await rows(store.database, "SELECT * FROM events ORDER BY id")
    assert first == {
        "id": 1, "ts": MINUTE + 1, "key_id": "key_a", "model": "fast", "upstream_model": "gpt-4.1",
        "prompt_tokens": 123, "completion_tokens": 45, "status": 200, "latency_ms": 901, "error": None,
        "usage_unknown": 0,
    }  # fmt: skip
    assert {**second, "ts": 0, "latency_ms": 0} == {
        "id": 2, "ts": 0, "key_id": "key_a", "model": "", "upstream_model": "", "prompt_tokens": None,
        "completion_tokens": None, "status": 0, "latency_ms": 0, "error": "refused_rate", "usage_unknown": 1,
    }  # fmt: skip
    assert (third["error"], third["usage_unknown"]) == ("upstream_broke", 0)


async def test_sums_are_those_of_all_batches(backend: Backend) -> None:
    """Whatever the batches: also with so many sums that they are read in several queries."""
    batches = [assorted(100, 1), [], assorted(1, 2), assorted(300, 3)]
    many = [usage_event(number, key_id=f"key_{number}") for number in range(450)]
    async with open_store(backend.directory, backend.url) as store:
        for number, events in enumerate([*batches, many, many]):
            await append(store.database, f"batch_{number}", events)
        told = [event for events in batches for event in events]
        found = await rollups(store.database)
        assert found == fold([*told, *many, *many])
        assert await row_count(store.database, "usage_events") == len(told) + 900
        mine = await rollups(store.database, key_id="key_ü")
        assert mine == {key: rollup for key, rollup in found.items() if key.key_id == "key_ü"}
        assert len(mine) > 10


async def test_sums_of_requests_without_a_row_are_added(backend: Backend) -> None:
    without = fold(refusal(number) for number in range(5))
    async with open_store(backend.directory, backend.url) as store:
        await store.database.store_usage(UsageBatch("a", (refusal(1),), without))
        await store.database.store_usage(UsageBatch("b", (), without))
        assert await rollups(store.database) == merge_all(
            [*without.items(), *without.items(), *fold([refusal(1)]).items()]
        )
        assert await stored_ids(store.database) == ["req_1"]


async def test_sums_are_read_oldest_first_and_from_minute_to_minute(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await append(store.database, "a", [usage_event(n, ts_ms=MINUTE + n * 60_000) for n in (2, 0, 1, 3)])

        def starts(connection: sa.Connection) -> list[int]:
            found = UsageRepository(connection).rollups(MINUTE + 60_000, MINUTE + 180_000)
            return [key.minute_ms for key, _ in found]

        assert await store.database.read(starts) == [MINUTE + 60_000, MINUTE + 120_000]


async def test_what_a_key_has_spent_since_a_time_is_summed(backend: Backend) -> None:
    """Of what is known: tokens of each kind, and money."""
    async with open_store(backend.directory, backend.url) as store:

        async def spent(key_id: str, from_ms: int) -> Amounts:
            return await store.database.read(lambda connection: UsageRepository(connection).spent(key_id, from_ms))

        assert await spent("key_a", 0) == Amounts(0, 0)
        events = [usage_event(n, ts_ms=MINUTE + n * 60_000, cost_micros=7) for n in range(3)]
        unknown = usage_event(3, ts_ms=MINUTE + 180_000, usage=None, cost_micros=None)
        await append(store.database, "a", [*events, unknown, usage_event(4, key_id="key_b")])
        assert await spent("key_a", MINUTE + 60_000) == Amounts(2 * 168, 14)
        assert await spent("key_a", 0) == Amounts(3 * 168, 21)


async def test_a_batch_that_fails_leaves_neither_rows_nor_sums(backend: Backend) -> None:
    """And is stored whole when it is given again."""
    batch = UsageBatch("a", (usage_event(1), usage_event(2)))
    async with open_store(backend.directory, backend.url) as store:
        stream = store.database.stream

        def fails(connection: sa.Connection) -> bool:
            UsageRepository(connection).add(batch, stream)
            raise DatabaseError("test", "in the last moment")

        with pytest.raises(DatabaseError):
            await write(store.database, fails)
        assert (await stored_ids(store.database), await rollups(store.database)) == ([], {})
        await store.database.store_usage(batch)
        assert await stored_ids(store.database) == ["req_1", "req_2"]
        assert await rollups(store.database) == fold(batch.events)


async def test_a_batch_whose_commit_had_no_answer_is_stored_once(backend: Backend) -> None:
    """Given again it is found; the next one is stored, also by a process that starts anew."""
    events = assorted(20, 1)
    async with open_store(backend.directory, backend.url) as store:
        for name in ("a", "a", "b", "a"):
            await append(store.database, name, events)
    async with open_store(backend.directory, backend.url) as store:
        await append(store.database, "a", events)
        await append(store.database, "c", events)
        assert await row_count(store.database, "usage_events") == 4 * 20
        assert await rollups(store.database) == fold(events * 4)


async def test_replicas_add_to_the_same_sums(postgres_server: PostgresServer, tmp_path: Path) -> None:
    url = postgres_server.new_database()

    async def replica(name: str) -> None:
        async with open_store(tmp_path / name, url) as store:
            for number in range(20):
                await append(store.database, f"{name}_{number}", [usage_event(f"{name}_{number}"), refusal(number)])

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(replica, name)
    async with open_store(tmp_path / "a", url) as store:
        found = await rollups(store.database)
        assert sum(rollup.requests for rollup in found.values()) == 120
        assert sum(rollup.latency.total for rollup in found.values()) == 60
        assert [row["id"] for row in await rows(store.database, "SELECT id FROM usage_events ORDER BY id")] == list(
            range(1, 121)
        )


async def test_a_sweep_removes_the_oldest_a_thousand_at_a_time(backend: Backend) -> None:
    old = [usage_event(n, ts_ms=MINUTE - 1 - n * 1000) for n in range(2500)]
    new = [usage_event(f"new_{n}", ts_ms=MINUTE + n) for n in range(3)]
    async with open_store(backend.directory, backend.url) as store:
        await append(store.database, "a", [*new, *old])
        assert await store.database.sweep_usage(-1) == 0
        first = await store.database.sweep_usage(MINUTE)
        assert 1000 <= first < 1100
        assert await stored_ids(store.database) == [event.request_id for event in [*new, *old[:1500]]]
        assert await store.database.sweep_usage(MINUTE) == 1000
        assert await store.database.sweep_usage(MINUTE) == 500
        assert await store.database.sweep_usage(MINUTE) == 0
        assert await stored_ids(store.database) == [event.request_id for event in new]
        assert await rollups(store.database) == fold(new)
        await append(store.database, "b", [usage_event("later")])
        assert (await stored_ids(store.database))[-1] == "req_later"


async def test_a_sweep_removes_all_sums_of_a_minute_at_once(backend: Backend) -> None:
    sums = {
        RollupKey(minute_ms=MINUTE + at * 60_000, key_id=f"key_{n}", model=None, upstream=None): UsageRollup(requests=1)
        for at in range(3)
        for n in range(6)
    }
    async with open_store(backend.directory, backend.url) as store:
        await store.database.store_usage(UsageBatch("a", (), sums))

        def sweep(connection: sa.Connection) -> int:
            return UsageRepository(connection).sweep(MINUTE + 120_000, limit=7)

        assert [await write(store.database, sweep) for _ in range(2)] == [12, 0]
        assert len(await rollups(store.database)) == 6


async def test_sizes_are_counted(backend: Backend) -> None:
    def sizes(connection: sa.Connection) -> tuple[int, int, int | None, bool]:
        found = UsageRepository(connection).sizes()
        return found.events, found.minutes, found.oldest_ms, found.database_bytes > 10_000

    async with open_store(backend.directory, backend.url) as store:
        assert await store.database.read(sizes) == (0, 0, None, True)
        await append(store.database, "a", [usage_event(n, ts_ms=MINUTE + n * 30_000) for n in range(4)])
        assert await store.database.read(sizes) == (4, 2, MINUTE, True)


async def test_a_name_that_could_hold_a_text_is_not_stored(backend: Backend) -> None:
    names = ["x" * 129, "two\nlines", "\x00", "\ud800", "", " ", f"{KEY_PREFIX}abc", "a\u202eb"]
    made_up = [
        usage_event(number, model=name, upstream_model=name, owner=name, identity=name, upstream=name)
        for number, name in enumerate(names)
    ]
    async with open_store(backend.directory, backend.url) as store:
        await append(store.database, "a", made_up)
        stored = await rows(store.database, "SELECT model, upstream_model, owner, identity, upstream FROM usage_events")
        assert {text for row in stored for text in row.values()} == {None}
        [(key, rollup)] = (await rollups(store.database)).items()
        assert (key.model, key.upstream, rollup.requests) == (None, None, len(names))


def test_a_sound_event_is_stored_as_it_is() -> None:
    event = usage_event(1, model="x" * 128, upstream_model="Ünï/cödé:8b \N{SNOWMAN}")
    assert storable(event) is event


@pytest.mark.parametrize(
    ("told", "stored"), [(-1.0, 0.0), (float("-inf"), 0.0), (float("nan"), 0.0), (float("inf"), 1e12), (2e12, 1e12)]
)
async def test_a_duration_of_a_clock_that_jumped_is_bounded(told: float, stored: float) -> None:
    event = storable(usage_event(1, latency_ms=told, ttft_ms=told, queue_ms=told))
    assert (event.latency_ms, event.ttft_ms, event.queue_ms) == (stored, stored, stored)
    untold = usage_event(1, latency_ms=told, ttft_ms=None, queue_ms=None)
    assert storable(untold) == evolve(untold, latency_ms=stored)


async def test_an_unknown_transport_is_another_one(backend: Backend) -> None:
    async with open_store(backend.directory, backend.url) as store:
        await append(store.database, "a", [usage_event(1, transport="Write me a poem")])
        assert await rows(store.database, "SELECT transport FROM usage_events") == [{"transport": "other"}]


async def test_sums_that_cannot_be_understood_are_said_to_be_damaged(backend: Backend) -> None:
    """As a newer capi could have stored. Nothing of the batch is stored then."""

    def spoil(connection: sa.Connection) -> None:
        connection.execute(usage_minutes.update().values(ttft='{"9999":1}'))

    async with open_store(backend.directory, backend.url) as store:
        await append(store.database, "a", [usage_event(1)])
        await write(store.database, spoil)
        with pytest.raises(RowDamaged, match=f"minute {MINUTE} is damaged"):
            await append(store.database, "b", [usage_event(2)])
        with pytest.raises(RowDamaged, match=f"minute {MINUTE} is damaged"):
            await rollups(store.database)
        assert await stored_ids(store.database) == ["req_1"]


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("ts >= 1 AND ts < 9", "usage_events_ts"),
        ("key_id = 'k' AND ts >= 1 AND ts < 9", "usage_events_key"),
        ("model = 'm' AND ts >= 1 AND ts < 9", "usage_events_model"),
        ("identity = 'i' AND ts >= 1 AND ts < 9", "usage_events_identity"),
        ("owner = 'o' AND ts >= 1 AND ts < 9", "usage_events_owner"),
    ],
)
async def test_each_window_has_its_index(tmp_path: Path, where: str, index: str) -> None:
    """Newest first and without a sort, so that a page costs its own rows only."""
    async with open_store(tmp_path / "data") as store:
        query = f"EXPLAIN QUERY PLAN SELECT * FROM usage_events WHERE {where} ORDER BY ts DESC, id DESC LIMIT 50"  # noqa: S608
        plan = [str(row["detail"]) for row in await rows(store.database, query)]
    assert len(plan) == 1
    assert f"SEARCH usage_events USING INDEX {index} (" in plan[0]


@pytest.mark.parametrize(
    ("where", "lookup"),
    [
        ("minute IN (1, 2, 3) AND key_id IN ('a', 'b', 'c')", "PRIMARY KEY (minute=? AND key_id=?)"),
        ("minute >= 1 AND minute < 9", "PRIMARY KEY (minute>?"),
        ("key_id = 'k' AND minute >= 1 AND minute < 9", "INDEX usage_minutes_key (key_id=? AND minute>?"),
    ],
)
async def test_sums_of_a_batch_and_of_windows_are_looked_up(tmp_path: Path, where: str, lookup: str) -> None:
    async with open_store(tmp_path / "data") as store:
        plan = await rows(store.database, f"EXPLAIN QUERY PLAN SELECT * FROM usage_minutes WHERE {where}")  # noqa: S608
    assert f"SEARCH usage_minutes USING {lookup}" in str(plan[0]["detail"])


class Unanswered:
    """A database whose connection breaks in the first COMMIT, after it was made."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._broken = False

    async def store_usage(self, batch: UsageBatch) -> None:
        await self._database.store_usage(batch)
        if not self._broken:
            self._broken = True
            raise CommitUnknown("test", "the connection broke")

    async def sweep_usage(self, before_ms: int) -> int:
        return await self._database.sweep_usage(before_ms)


async def recorded(sink: UsageSink, events: Iterable[UsageEvent]) -> None:
    """A recorder's whole life."""
    recorder = Recorder(sink, now_ms=lambda: MINUTE, keep_days=lambda: 30, new_batch_id=lambda: random_bytes(8).hex())
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.run)
        for event in events:
            recorder.note(event)
        nursery.cancel_scope.cancel()


async def test_what_a_recorder_notes_is_in_the_database_when_it_has_ended(backend: Backend) -> None:
    events = assorted(1200, 4)
    async with open_store(backend.directory, backend.url) as store:
        await recorded(store.database, events)
        assert await stored_ids(store.database) == [event.request_id for event in events]
        assert await rollups(store.database) == fold(events)


async def test_a_commit_without_an_answer_makes_no_request_twice(backend: Backend) -> None:
    events = assorted(600, 5)
    async with open_store(backend.directory, backend.url) as store:
        with capture_logs() as logs:
            await recorded(Unanswered(store.database), events)
        assert [line["event"] for line in logs] == ["usage_not_stored", "usage_stored_again"]
        assert await stored_ids(store.database) == [event.request_id for event in events]
        assert await rollups(store.database) == fold(events)


@pytest.mark.slow
async def test_a_kill_costs_at_most_a_quarter_of_a_second_of_rows(backend: Backend, tmp_path: Path) -> None:
    """`CAPI_KILL_ROUNDS` kills (5) at random moments: what was noted before that is there, once, in rows and sums.

    A quarter of a second, that is, of a database and a processor that are there at once: how long the commits took, and
    for how long the process stood still, comes on top.
    """
    dice = random.Random(1)
    known = 0
    with Forker() as forker:
        for number in range(KILL_ROUNDS):
            acks = tmp_path / f"acks_{number}"
            acks.touch()
            pid = forker.start("note", backend.directory, backend.url, acks=acks, seed=number)
            with trio.fail_after(30):
                while not acks.stat().st_size:  # noqa: ASYNC110 - nothing tells of a file's growth
                    await trio.sleep(0.005)
            await trio.sleep(dice.uniform(0.3, 1.0))
            os.kill(pid, signal.SIGKILL)
            assert forker.wait() == {pid: -signal.SIGKILL}
            noted, busy_s = told_by_child(acks)
            async with open_store(backend.directory, backend.url) as store:
                found = await stored_ids(store.database)
                sums = await rollups(store.database)
            mine = [name for name in found if name.startswith(f"req_{number}_")]
            assert mine == [name for _, name in noted[: len(mine)]]
            known += len(mine)
            assert known == len(found) == sum(rollup.requests for rollup in sums.values())
            assert all(noted[-1][0] - at <= 0.25 + busy_s for at, _ in noted[len(mine) :])
    assert known > KILL_ROUNDS


def told_by_child(acks: Path) -> tuple[list[tuple[float, str]], float]:
    """What the child noted and when, and for how long at most it was held up."""
    lines = [line.split() for line in acks.read_text().splitlines()]
    noted = [(float(at), name) for what, at, name in lines if what == "noted"]
    commits = [float(at) for what, at, _ in lines if what in ("begun", "ended")]
    ends = [*commits, noted[-1][0]] if len(commits) % 2 else commits
    slowest = max((end - begin for begin, end in zip(ends[::2], ends[1::2], strict=True)), default=0.0)
    stood_still = max((later - at for (at, _), (later, _) in pairwise(noted)), default=0.0)
    return noted, slowest + stood_still
