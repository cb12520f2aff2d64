"""Reports of usage over a real database: which requests are in them, how they are grouped, and what nobody told."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

from capi_core.commands import Outcome
from capi_core.histogram import RELATIVE_ERROR
from capi_core.rollups import Span, UsageRollup
from capi_core.usage import Usage, UsageSource
from capi_core.usage_events import UsageEvent
from capi_trio.storage.database import Mutation
from capi_trio.storage.errors import RowDamaged
from capi_trio.storage.tables import usage_minutes
from capi_trio.storage.usage import UsageBatch
from capi_trio.usage_reports import (
    DEFAULT_SINCE,
    MAX_DAYS,
    SPANS,
    SinceError,
    UsageBy,
    UsageFigures,
    UsageReport,
    UsageReports,
    window_start,
)
from tests.capi_trio.storage.helpers import draft, open_store
from tests.support.usage_rows import MINUTE, refusal, usage_event

NOW = MINUTE + 30_000


async def report_of(
    directory: Path, events: Iterable[UsageEvent], since: str = DEFAULT_SINCE, by: UsageBy = UsageBy.KEY, **more: str
) -> UsageReport:
    """A report over a database that holds these requests."""
    async with open_store(directory / "data") as store:
        await store.database.store_usage(UsageBatch("batch", tuple(events)))
        return await UsageReports(store.database, lambda: NOW).report(since, by, **more)  # type: ignore[arg-type]  # key_id


# -- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "start"),
    [
        ("30m", NOW - 30 * 60_000),
        ("24h", NOW - Span.DAY),
        ("007d", NOW - 7 * Span.DAY),
        ("400d", NOW - 400 * Span.DAY),
        ("9600h", NOW - 400 * Span.DAY),
        ("2026-09-01", 1_788_220_800_000),
        ("2026-09-21", 1_789_948_800_000),
    ],
)
def test_a_window_begins_so_long_ago_or_with_a_day_of_utc(since: str, start: int) -> None:
    assert window_start(since, NOW) == start


@pytest.mark.parametrize(
    "since",
    [
        "", " ", "24", "h", "24 h", "24H", "-24h", "+1d", "1.5h", "1w", "24h ", "24h\n", "٢٤h", "1e3h", "9999999d",
        "2026-9-1", "2026-02-30", "2026-13-01", "0000-01-01", "20260901", "2026-W01-1", "2026-09-01T00:00", "today",
    ],
)  # fmt: skip
def test_nonsense_is_no_window(since: str) -> None:
    with pytest.raises(SinceError, match="must be a time such as 30m, 24h or 7d"):
        window_start(since, NOW)


@pytest.mark.parametrize("since", ["0m", "0h", "00d", "2026-09-22", "9999-12-31"])
def test_a_window_lies_in_the_past(since: str) -> None:
    with pytest.raises(SinceError, match="in the past"):
        window_start(since, NOW)


@pytest.mark.parametrize("since", ["401d", "9601h", "999999d", "2025-08-01", "0001-01-01"])
def test_a_window_is_bounded(since: str) -> None:
    with pytest.raises(SinceError, match="at most 400 days ago"):
        window_start(since, NOW)


@given(st.text(max_size=12), st.integers(0, 2**42))
def test_whatever_is_asked_for_is_a_bounded_window_or_refused(since: str, now_ms: int) -> None:
    try:
        start = window_start(since, now_ms)
    except SinceError:
        return
    assert now_ms - MAX_DAYS * Span.DAY <= start < now_ms


# -- what is in a report --------------------------------------------------------------------------------------------


async def test_requests_of_the_window_are_in_it_to_the_minute(tmp_path: Path) -> None:
    before = [usage_event(number, ts_ms=MINUTE - Span.HOUR - 1 - number) for number in range(3)]
    within = [usage_event("a", ts_ms=MINUTE - Span.HOUR), usage_event("b", ts_ms=NOW)]
    after = [usage_event("c", ts_ms=MINUTE + Span.MINUTE)]
    report = await report_of(tmp_path, [*before, *within, *after], "1h")
    assert (report.from_ms, report.to_ms) == (MINUTE - Span.HOUR, MINUTE + Span.MINUTE)
    assert report.total.requests == len(within)


@pytest.mark.parametrize("by", list(SPANS))
async def test_the_first_hour_or_day_is_whole(tmp_path: Path, by: UsageBy) -> None:
    first = SPANS[by].start(NOW - 2 * SPANS[by])
    events = [usage_event("a", ts_ms=first), usage_event("b", ts_ms=first - 1), usage_event("c", ts_ms=NOW)]
    report = await report_of(tmp_path, events, "2d" if by is UsageBy.DAY else "2h", by)
    assert report.from_ms == first
    assert [(line.starts_at, line.requests) for line in report.lines] == [(first, 1), (SPANS[by].start(NOW), 1)]
    assert all(line.name is None and line.label is None for line in report.lines)


GROUPS: dict[UsageBy, Callable[[UsageEvent], str | int | None]] = {
    UsageBy.KEY: lambda event: event.key_id,
    UsageBy.MODEL: lambda event: event.model,
    UsageBy.UPSTREAM: lambda event: event.upstream,
    UsageBy.HOUR: lambda event: Span.HOUR.start(event.ts_ms),
    UsageBy.DAY: lambda event: Span.DAY.start(event.ts_ms),
}


@pytest.mark.parametrize("by", list(UsageBy))
async def test_a_report_says_what_adding_up_the_requests_would(tmp_path: Path, by: UsageBy) -> None:
    """Whatever it is grouped by, and although it is read in pieces."""
    dice = random.Random(5)
    events = [
        usage_event(
            number,
            ts_ms=MINUTE - dice.randrange(9 * Span.DAY),
            key_id=dice.choice(["key_a", "key_b"]),
            model=dice.choice(["fast", "slow", None]),
            upstream=dice.choice(["copilot", "lab", None]),
            outcome=dice.choice([Outcome.OK, Outcome.TIMEOUT, Outcome.CLIENT_GONE, Outcome.REFUSED_RATE]),
            latency_ms=dice.lognormvariate(6, 2),
            cost_micros=dice.choice([None, 5]),
        )
        for number in range(400)
    ]
    report = await report_of(tmp_path, events, "9d", by)
    within = [event for event in events if event.ts_ms >= report.from_ms]
    groups = {GROUPS[by](event) for event in within}
    assert {line.name if line.starts_at is None else line.starts_at for line in report.lines} == groups
    for line in report.lines:
        group = line.name if line.starts_at is None else line.starts_at
        expected = UsageFigures.of(UsageRollup.of([event for event in within if GROUPS[by](event) == group]))
        assert all(getattr(line, name) == getattr(expected, name) for name in UsageFigures.__struct_fields__)
    assert report.total == UsageFigures.of(UsageRollup.of(within))


async def test_lines_of_times_are_in_order_and_others_begin_with_the_most_requests(tmp_path: Path) -> None:
    events = [
        usage_event(number, ts_ms=MINUTE - number * Span.HOUR, model=model)
        for number, model in enumerate(["b", None, "c", "a", "c", None, "c"])
    ]
    by_model = await report_of(tmp_path / "a", events, by=UsageBy.MODEL)
    assert [(line.name, line.requests) for line in by_model.lines] == [("c", 3), (None, 2), ("a", 1), ("b", 1)]
    by_hour = await report_of(tmp_path / "b", events, by=UsageBy.HOUR)
    starts = [line.starts_at for line in by_hour.lines]
    assert starts == [Span.HOUR.start(MINUTE - number * Span.HOUR) for number in reversed(range(7))]


async def test_a_report_of_one_key_holds_nothing_of_another(tmp_path: Path) -> None:
    events = [usage_event(0), usage_event(1, key_id="key_b", model="secret"), usage_event(2, key_id="key_b")]
    mine = await report_of(tmp_path / "a", events, by=UsageBy.MODEL, key_id="key_a")
    assert [(line.name, line.requests) for line in mine.lines] == [("fast", 1)]
    assert mine.total.requests == 1
    nobody = await report_of(tmp_path / "b", events, by=UsageBy.MODEL, key_id="key_")
    assert (nobody.lines, nobody.total.requests) == ([], 0)


async def test_keys_come_with_their_labels(tmp_path: Path) -> None:
    events = [usage_event(0), usage_event(1, key_id="gone", model="key_a")]
    async with open_store(tmp_path / "data") as store:
        await store.database.store_usage(UsageBatch("batch", events))
        reports = UsageReports(store.database, lambda: NOW)
        labels = {"key_a": "Ann's laptop"}
        by_key = await reports.report("1h", UsageBy.KEY, labels=labels)
        assert {line.name: line.label for line in by_key.lines} == {"key_a": "Ann's laptop", "gone": None}
        by_model = await reports.report("1h", UsageBy.MODEL, labels=labels)
        assert {line.name: line.label for line in by_model.lines} == {"fast": None, "key_a": None}


async def test_without_requests_there_is_nothing_and_the_total_is_0(tmp_path: Path) -> None:
    report = await report_of(tmp_path, [])
    assert report.lines == []
    assert report.total == UsageFigures.of(UsageRollup())
    assert (report.total.requests, report.total.output, report.total.cost_micros) == (0, 0, 0)
    assert report.total.latency_p50_ms is report.total.ttft_p50_ms is None


# -- figures --------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_sum() -> None:
    durations = range(1, 101)
    figures = UsageFigures.of(UsageRollup.of([usage_event(ms, latency_ms=ms, ttft_ms=ms / 2) for ms in durations]))
    assert (figures.requests, figures.uncached_input, figures.cache_read, figures.cache_write) == (
        100,
        10_000,
        2000,
        300,
    )
    assert (figures.output, figures.reasoning, figures.cost_micros) == (4000, 500, 77_700)
    assert figures.latency_p50_ms == pytest.approx(50, rel=RELATIVE_ERROR + 0.01)
    assert figures.latency_p95_ms == pytest.approx(95, rel=RELATIVE_ERROR + 0.01)
    assert figures.ttft_p50_ms == pytest.approx(25, rel=RELATIVE_ERROR + 0.01)


def test_how_requests_ended_is_counted() -> None:
    outcomes = [Outcome.OK, Outcome.TIMEOUT, Outcome.UPSTREAM_ERROR, Outcome.CLIENT_GONE]
    figures = UsageFigures.of(UsageRollup.of([*(usage_event(outcome=one) for one in outcomes), refusal()]))
    assert (figures.requests, figures.errors, figures.aborted, figures.refused) == (5, 2, 1, 1)


def test_what_nobody_told_is_none_and_never_0() -> None:
    silent = usage_event(usage=None, usage_source=UsageSource.NONE, cost_micros=None)
    figures = UsageFigures.of(UsageRollup.of([silent]))
    tokens = figures.uncached_input, figures.cache_read, figures.cache_write, figures.output, figures.reasoning
    assert (*tokens, figures.cost_micros) == (None,) * 6
    assert (figures.unknown_usage, figures.unknown_cost) == (1, 1)


def test_what_some_told_is_a_lower_bound() -> None:
    silent = usage_event(usage=None, usage_source=UsageSource.NONE, cost_micros=None)
    told = usage_event(usage=Usage(uncached_input=7, output=2), cost_micros=3)
    figures = UsageFigures.of(UsageRollup.of([silent, told]))
    assert (figures.uncached_input, figures.output, figures.cost_micros) == (7, 2, 3)
    assert figures.cache_read is None
    assert (figures.unknown_usage, figures.unknown_cost) == (1, 1)


def test_a_refused_request_has_used_0() -> None:
    """No model was asked: that is known."""
    figures = UsageFigures.of(UsageRollup.of([refusal()]))
    assert (figures.uncached_input, figures.output, figures.cost_micros) == (0, 0, 0)
    assert (figures.unknown_usage, figures.unknown_cost, figures.latency_p50_ms) == (0, 0, None)


# -- how it is read -------------------------------------------------------------------------------------------------


async def test_one_report_at_a_time(tmp_path: Path) -> None:
    """However many callers ask: readers are left for everybody else."""
    running: list[int] = []
    most = 0

    def watch(connection: sa.Connection) -> None:
        nonlocal most
        running.append(1)
        most = max(most, len(running))

    async with open_store(tmp_path / "data") as store:
        await store.database.store_usage(UsageBatch("batch", [usage_event()]))
        engine = store.database._readers
        event.listen(engine, "begin", watch)
        event.listen(engine, "commit", lambda connection: running.pop())
        reports = UsageReports(store.database, lambda: NOW)
        totals: list[int] = []

        async def ask() -> None:
            report = await reports.report("7d", UsageBy.KEY)
            totals.append(report.total.requests)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert totals == [1] * 5
        assert most == 1


async def test_a_damaged_row_is_told_and_the_next_report_is_made(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data") as store:
        await store.database.store_usage(UsageBatch("batch", [usage_event(), usage_event(ts_ms=MINUTE - Span.DAY)]))
        reports = UsageReports(store.database, lambda: NOW)

        def damage(connection: sa.Connection) -> Mutation[None]:
            older = usage_minutes.c.minute < MINUTE
            connection.execute(usage_minutes.update().where(older).values(latency='{"9999":1}'))
            return Mutation(None, (draft(),))

        await store.database.mutate(damage)
        with pytest.raises(RowDamaged):
            await reports.report("7d", UsageBy.KEY)
        assert (await reports.report("1h", UsageBy.KEY)).total.requests == 1
