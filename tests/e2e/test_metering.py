"""What requests leave behind, counted: every one a row, once, with its true end and tokens, and no word of it.

Requests of every kind go through a real gateway in front of the demo provider; then the database is read as it lies
there, and held against what the clients heard and what the log says.
"""

import random
import signal
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Final

import h11
import pytest
import trio
from attrs import define, field

from capi_core.commands import Operation, Outcome
from capi_core.histogram import Histogram
from capi_core.protocols.kinds import Protocol
from capi_core.rollups import ENDINGS, Ending
from capi_core.usage import UsageSource
from capi_trio.operations import CreateKey
from capi_trio.storage.sqlite import DATABASE_NAME
from tests.e2e.conftest import faultless
from tests.e2e.metered import CANARY, MAX_BODY, Ask, Spent, Told, ask, every_kind, no_requests, send, told
from tests.e2e.peers import connect
from tests.support.process import Capi, LogLine, gateway, issue_key
from tests.support.scale import FULL, tell

ROUNDS: Final = 20 if FULL else 2
AT_ONCE: Final = 16
KILLS: Final = 20 if FULL else 2
LOST_S: Final = 1.0
"""How long before a kill a request may have ended whose row is lost: 250 ms, and a commit on a busy machine."""
SEED: Final = 7

CONFIG: Final[Mapping[str, object]] = {
    "upstreams": {"demo": {"kind": "demo"}},
    "models": {"quick": {"upstream": "demo-chat"}},
    "limits": {"max_body_bytes": MAX_BODY, "requests_per_minute": 1_000_000},
    "prices": {"demo-*": {"input": 3, "cache_read": 0.3, "cache_write": 3.75, "output": 15}},
}
TOKENS: Final = ("uncached_input", "cache_read", "cache_write", "output", "reasoning")
# What a row may hold but numbers: ids that are made here, names that the operator gave, and words of closed sets.
IDS: Final = frozenset({"request_id", "key_id"})
NAMES: Final[Mapping[str, frozenset[object]]] = {
    "owner": frozenset({None, "Ann"}),
    "identity": frozenset({None}),
    "upstream": frozenset({None, "demo"}),
    "model": frozenset({None, "quick", "demo-chat", "demo-gpt", "demo-claude", "demo-embed"}),
    "upstream_model": frozenset({None, "demo-chat", "demo-gpt", "demo-claude", "demo-embed"}),
}
WORDS: Final[Mapping[str, frozenset[object]]] = {
    "operation": frozenset(operation.name.lower() for operation in Operation),
    "transport": frozenset({"http", "websocket"}),
    "client_protocol": frozenset(protocol.value for protocol in Protocol),
    "upstream_protocol": frozenset({None, *(protocol.value for protocol in Protocol)}),
    "usage_source": frozenset(source.value for source in UsageSource),
    "outcome": frozenset(outcome.value for outcome in Outcome),
}
TEXTS: Final[Mapping[str, frozenset[str]]] = {
    "usage_events": frozenset({*IDS, *NAMES, *WORDS}),
    "usage_minutes": frozenset({"key_id", "model", "upstream", "latency", "ttft"}),  # two histograms
    "usage_writers": frozenset({"stream", "batch"}),
}

Row = dict[str, object]


@define(eq=False)
class Books:
    """What was asked, and what is known of it from three sides: the clients', the log's, the database's."""

    data_dir: Path
    told: list[Told] = field(factory=list)
    log: list[LogLine] = field(factory=list)

    def rows(self, table: str = "usage_events") -> list[Row]:
        """As they lie there."""
        with closing(sqlite3.connect(f"file:{self.data_dir / DATABASE_NAME}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(f"SELECT * FROM {table}")]  # noqa: S608 - names of ours

    def columns(self) -> Iterator[tuple[str, str, str]]:
        """Table, column and type of all that is there about usage."""
        with closing(sqlite3.connect(f"file:{self.data_dir / DATABASE_NAME}?mode=ro", uri=True)) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'usage%'")
            for (table,) in names.fetchall():
                for _, column, kind, *_rest in database.execute(f"PRAGMA table_info({table})"):
                    yield table, column, kind


class Round:
    """One of each kind, with keys of its own: of each only so many refusals a minute leave rows."""

    def __init__(self, data_dir: Path) -> None:
        self.keys = {
            name: issue_key(data_dir, asked).text
            for name, asked in (
                ("anybody", CreateKey(label=CANARY, owner="Ann")),
                ("chat-only", CreateKey(label=CANARY, allowed_models=("demo-chat",))),
                ("over-rate", CreateKey(label=CANARY, rate_limit_override=1)),
            )
        }

    async def run(self, capi: Capi, asks: Sequence[Ask], heard: list[Told]) -> None:
        # A request that is wrong counts towards the rate as any other: from here on, the key is over it.
        first = Ask(Operation.CHAT, "demo-chat", "demo-chat", key="over-rate")
        heard.append(await ask(capi.port, self.keys["over-rate"], first))
        free = trio.CapacityLimiter(AT_ONCE)

        async def one(what: Ask) -> None:
            async with free:
                heard.append(await ask(capi.port, self.keys[what.key], what))

        async with trio.open_nursery() as nursery:
            for what in asks:
                nursery.start_soon(one, what)


async def ask_until_the_end(capi: Capi, key: str) -> list[Told]:
    """Some requests run on when the gateway is told to end, and one was refused just before."""
    slow = [
        Ask(door, model, model, stream=True, demo={"pace_ms": 20, "events": 30})
        for door in (Operation.CHAT, Operation.RESPONSES, Operation.MESSAGES)
        for model in ("demo-chat", "demo-gpt", "demo-claude")
    ]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(capi.port)) for _ in slow]
        for client, what in zip(clients, slow, strict=True):
            await send(client, key, what)
        for client in clients:
            await client.wait_readable()
        last = await ask(capi.port, key, Ask(Operation.CHAT, CANARY, None, Outcome.REFUSED_MODEL))
        capi.terminate()
        running = [told(what, await client.response(b"POST")) for client, what in zip(clients, slow, strict=True)]
    return [last, *running]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Books:
    """Everything was asked, and the gateway has ended at SIGTERM."""
    books = Books(tmp_path_factory.mktemp("metering") / "capi")
    trio.run(_ask_everything, books)
    return books


async def _ask_everything(books: Books) -> None:
    began = time.monotonic()
    with faultless(gateway(books.data_dir, CONFIG, auth=True)) as capi:
        rng = random.Random(SEED)
        for _ in range(ROUNDS):
            asks = list(every_kind())
            rng.shuffle(asks)
            await Round(books.data_dir).run(capi, asks, books.told)
        key = issue_key(books.data_dir, CreateKey(label="the last one", owner="Ann")).text
        for data in no_requests(key):
            async with connect(capi.port) as client:
                await client.send(data)
                await client.stream.send_eof()
                await client.ended()
        books.told += await ask_until_the_end(capi, key)
        assert capi.wait() == 0
        books.log = capi.events("exchange")
    outcomes = Counter(str(line["outcome"]) for line in books.log)
    tell(f"metering: {len(books.told)} requests in {time.monotonic() - began:.1f} s; {dict(outcomes.most_common())}")


# -- rows ---------------------------------------------------------------------------------------------------------


def test_each_request_leaves_one_row(books: Books) -> None:
    """Also one that was refused, one whose client left, and those that ran when the gateway was told to end."""
    rows = books.rows()
    assert len(books.told) >= 100 * ROUNDS
    assert len(rows) == len(books.told)
    ids = Counter(row["request_id"] for row in rows)
    assert set(ids.values()) == {1}
    assert set(ids) == {line["request_id"] for line in books.log}
    assert {one.id for one in books.told} - {None} <= set(ids)
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))


def test_each_row_tells_the_end_that_its_client_saw(books: Books) -> None:
    rows = books.rows()
    by_id = {row["request_id"]: row for row in rows}
    for one in books.told:
        if one.id is not None:
            row = by_id[one.id]
            assert (row["status"], row["outcome"], kind_of(row)) == (one.status, one.ask.outcome.value, one.ask.kind)
    assert Counter((*kind_of(row), row["outcome"]) for row in rows) == Counter(
        (*one.ask.kind, one.ask.outcome.value) for one in books.told
    )


def test_each_row_says_what_the_log_says(books: Books) -> None:
    by_id = {line["request_id"]: line for line in books.log}
    same = ("key_id", "transport", "operation", "outcome", "status", "upstream", "upstream_model", "upstream_protocol",
            "losses", "stream", "identity", "usage_source")  # fmt: skip
    for row in books.rows():
        line = by_id[row["request_id"]]
        counted_here = line["operation"] == "count_tokens" and line["upstream_protocol"] is None
        meant = {"upstream": None} if counted_here else {}  # the log has the upstream that was meant, too
        assert {name: row[name] for name in same} == {name: line[name] for name in same} | meant
        assert [row[name] for name in TOKENS] == [line.get(f"tokens_{name}") for name in TOKENS]
        assert row["failed_upstreams"] == len(line["failed_upstreams"])  # type: ignore[arg-type]  # a list of names
        answered = row["outcome"] in {"ok", "client_gone"}  # the time to a refusal is not one to a first token
        first_byte_ms = line["first_byte_ms"] if answered else None
        for name, logged in (
            ("latency_ms", line["latency_ms"]), ("ttft_ms", first_byte_ms), ("queue_ms", line["queue_ms"]),
        ):  # fmt: skip
            assert (row[name] is None) == (logged is None)
            assert abs(number(row[name]) - number(logged)) <= 1


def test_the_tokens_of_each_kind_are_those_that_the_clients_were_told_of(books: Books) -> None:
    """Passed through and translated, streamed and not, over HTTP and WebSocket."""
    rows, log = books.rows(), {line["request_id"]: line for line in books.log}
    by_id = {row["request_id"]: row for row in rows}
    heard, stored = defaultdict[object, list[Spent]](list), defaultdict[object, list[Spent]](list)
    for one in books.told:
        if one.ask.outcome is not Outcome.OK:
            continue
        if one.ask.unheard:
            assert one.spent is None
            heard[one.ask.kind].append(spent(log[one.id], "tokens_"))
        elif one.spent is not None:
            heard[one.ask.kind].append(one.spent)
            assert one.id is None or spent(by_id[one.id]) == one.spent
    for row in rows:
        if row["outcome"] == "ok" and row["usage_source"] != "none":
            stored[kind_of(row)].append(spent(row))
    assert {kind: len(found) for kind, found in stored.items()} == {kind: len(found) for kind, found in heard.items()}
    assert {kind: sum(found, Spent()) for kind, found in stored.items()} == {
        kind: sum(found, Spent()) for kind, found in heard.items()
    }
    everything = sum((one for found in stored.values() for one in found), Spent())
    assert min(everything.prompt, everything.cache_read, everything.cache_write, everything.made) > 0


def test_each_row_costs_what_the_configured_prices_make_of_its_tokens(books: Books) -> None:
    for row in books.rows():
        uncached, read, written, output, reasoning = (int(number(row[name])) for name in TOKENS)
        if row["cost_micros"] is not None:
            exact = 3 * uncached + 0.3 * read + 3.75 * written + 15 * (output + reasoning)
            assert abs(number(row["cost_micros"]) - exact) <= 0.5


def test_what_nobody_told_is_unknown_and_never_0(books: Books) -> None:
    rows = books.rows()
    for row in rows:
        counts = [row[name] for name in TOKENS]
        if row["usage_source"] == "none":
            assert counts == [None] * len(TOKENS)
            assert row["cost_micros"] is None
        elif row["outcome"] == "ok" and row["operation"] != "embeddings":
            assert row["usage_source"] == "upstream_final"
            assert None not in (row["uncached_input"], row["output"], row["cost_micros"])
        if row["outcome"] not in ("ok", "client_gone", "upstream_broke") or row["operation"] == "count_tokens":
            assert row["usage_source"] == "none"
    assert Counter(row["usage_source"] for row in rows if row["outcome"] == "client_gone").keys() == {
        "none",
        "upstream_partial",
    }
    known = [row for row in rows if row["usage_source"] != "none"]
    assert any(row["cache_read"] is None and row["reasoning"] is None for row in known)
    # An upstream that answered well and did not say what it took.
    assert any(
        row["usage_source"] == "none" and row["outcome"] == "ok" and row["ttft_ms"] is not None
        for row in rows
        if row["operation"] != "count_tokens"
    )


def test_times_are_in_order_and_are_this_runs(books: Books) -> None:
    now = time.time() * 1000
    for row in books.rows():
        assert now - 3_600_000 < number(row["ts"]) < now
        assert 0 <= number(row["ttft_ms"]) <= number(row["latency_ms"])


# -- sums ---------------------------------------------------------------------------------------------------------


def test_the_sums_of_the_minutes_are_the_sums_of_the_rows(books: Books) -> None:
    check_sums(books)


def check_sums(books: Books) -> None:
    minutes = {
        (row["minute"], row["key_id"], row["model"], row["upstream"]): row for row in books.rows("usage_minutes")
    }
    groups = defaultdict[object, list[Row]](list)
    for row in books.rows():
        minute = number(row["ts"]) // 60_000 * 60_000
        groups[minute, row["key_id"], row["model"] or "", row["upstream"] or ""].append(row)
    assert minutes.keys() == groups.keys()
    for key, rows in groups.items():
        sums = minutes[key]  # type: ignore[index]  # the same four
        endings = Counter(ENDINGS[Outcome(row["outcome"])] for row in rows)
        assert sums["requests"] == len(rows)
        assert [sums["errors"], sums["aborted"], sums["refused"]] == [
            endings[Ending.FAILED],
            endings[Ending.ABORTED],
            endings[Ending.REFUSED],
        ]
        for name in (*TOKENS, "cost_micros"):
            assert sums[name] == sum(number(row[name]) for row in rows)
        assert Histogram.decode(str(sums["latency"])).total == len(rows) - endings[Ending.REFUSED]
        assert Histogram.decode(str(sums["ttft"])).total == sum(row["ttft_ms"] is not None for row in rows)


# -- no word ------------------------------------------------------------------------------------------------------


def test_no_column_of_any_row_has_a_word_of_a_clients(books: Books) -> None:
    """The canary was in every prompt, tool, argument, header, query and unknown model, and in the names of the keys."""
    for table in TEXTS:
        found = [(name, text) for row in books.rows(table) for name, text in row.items() if CANARY in str(text).lower()]
        assert found == []
    for row in books.rows():
        assert {name: row[name] for name in NAMES if row[name] not in NAMES[name]} == {}
        assert {name: row[name] for name in WORDS if row[name] not in WORDS[name]} == {}


def test_there_is_no_column_for_free_text(books: Books) -> None:
    """A new column that can hold text has to be listed, and with it what may stand in it."""
    texts = defaultdict[str, set[str]](set)
    for table, column, kind in books.columns():
        assert kind in {"TEXT", "BIGINT", "INTEGER", "BOOLEAN"}
        if kind == "TEXT":
            texts[table].add(column)
    assert texts == TEXTS


def kind_of(row: Row) -> tuple[object, ...]:
    return row["operation"], row["transport"], bool(row["stream"]), row["model"]


def number(value: object) -> float:
    """0 for what is unknown: only where that has been looked at."""
    assert value is None or isinstance(value, int | float)
    return value or 0


def spent(row: Mapping[str, object], prefix: str = "") -> Spent:
    uncached, read, written, output, reasoning = (int(number(row[f"{prefix}{name}"])) for name in TOKENS)
    return Spent(uncached + read + written, read, written, output + reasoning, reasoning)


# -- the default model --------------------------------------------------------------------------------------------


async def test_a_name_whose_place_the_default_took_is_not_kept(tmp_path: Path) -> None:
    """Whatever a client calls is answered by the default model then, and must not become a name in the figures."""
    config = {**CONFIG, "default_model": "quick"}
    books = Books(tmp_path / "capi")
    with faultless(gateway(books.data_dir, config)) as capi:
        for called in (CANARY, "quick"):
            answered = await ask(capi.port, "", Ask(Operation.CHAT, called, "quick"))
            assert answered.status == 200
        capi.terminate()
        assert capi.wait() == 0
    rows = books.rows()
    assert [row["upstream_model"] for row in rows] == ["demo-chat", "demo-chat"]
    assert CANARY not in str(rows)
    assert CANARY not in str(books.rows("usage_minutes"))
    check_sums(books)


# -- more refusals than leave rows --------------------------------------------------------------------------------


async def test_refusals_without_a_row_are_in_the_sums(tmp_path: Path) -> None:
    """Of one key 60 a minute leave a row. The test may run across the end of one minute."""
    books = Books(tmp_path / "capi")
    count = 140
    with faultless(gateway(books.data_dir, CONFIG)) as capi:
        for _ in range(count):
            await ask(capi.port, "", Ask(Operation.CHAT, CANARY, None, Outcome.REFUSED_MODEL))
        capi.terminate()
        assert capi.wait() == 0
        assert len(capi.events("exchange", outcome="refused_model")) == count
    assert len(books.rows()) in range(60, 121)
    minutes = books.rows("usage_minutes")
    assert sum(number(row["requests"]) for row in minutes) == sum(number(row["refused"]) for row in minutes) == count
    assert CANARY not in str(minutes)


# -- kill -9 ------------------------------------------------------------------------------------------------------


@define(eq=False)
class Killed:
    """Clients who ask one request after the other until the gateway is gone. `ended`: when each was answered, by id."""

    ended: dict[str, float] = field(factory=dict)
    asked: int = 0

    async def ask(self, port: int) -> None:
        what = Ask(Operation.CHAT, "demo-chat", "demo-chat")
        while True:
            self.asked += 1
            try:
                answered = await ask(port, "", what)
            except (OSError, EOFError, trio.BrokenResourceError, h11.RemoteProtocolError):
                return  # killed
            assert answered.id is not None
            self.ended[answered.id] = time.monotonic()


async def test_a_kill_costs_the_rows_of_its_last_moment_and_no_others(tmp_path: Path) -> None:
    """What had ended before is there, once, and in the sums; and the next start goes on behind it."""
    dice = random.Random(SEED)
    books, killed = Books(tmp_path / "capi"), Killed()
    lost: list[float] = []
    stored: set[str] = set()
    for _ in range(KILLS):
        before = set(killed.ended)
        with gateway(books.data_dir, CONFIG) as capi:
            async with trio.open_nursery() as nursery:
                for _client in range(4):
                    nursery.start_soon(killed.ask, capi.port)
                await trio.sleep(dice.uniform(LOST_S, 2 * LOST_S))  # the moment is what is random
                capi.send_signal(signal.SIGKILL)
                at = time.monotonic()
        assert capi.faults == []
        ids = Counter(str(row["request_id"]) for row in books.rows())
        assert set(ids.values()) == {1}
        assert stored < set(ids)
        lost += [at - killed.ended[one] for one in killed.ended.keys() - before - ids.keys()]
        stored = set(ids)
        check_sums(books)
    rows = books.rows()
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(killed.ended) - len(lost) <= len(rows) <= killed.asked
    assert max(lost, default=0) <= LOST_S
    tell(
        f"metering: {KILLS} kills cost {len(lost)} rows of {len(killed.ended)}, "
        f"of answers from at most {max(lost, default=0) * 1000:.0f} ms before"
    )
