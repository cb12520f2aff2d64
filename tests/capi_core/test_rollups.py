"""Sums of usage: what counts as what, and that neither order nor grouping matters."""

import itertools

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from capi_core.commands import Operation, Outcome
from capi_core.errors import LocalError
from capi_core.histogram import Histogram
from capi_core.rollups import (
    ENDINGS,
    MAX_SUM,
    Ending,
    RollupKey,
    Span,
    UsageRollup,
    coarser,
    fold,
    is_usage_unknown,
    merge,
    merge_all,
    regroup,
)
from capi_core.usage import Usage, UsageSource
from capi_core.usage_events import UsageEvent

NOON = 1_795_521_600_000
"""2026-11-24, ms since epoch."""
USAGE = Usage(uncached_input=100, cache_read=20, cache_write=3, output=40, reasoning=5)


def an_event(
    outcome: Outcome = Outcome.OK,
    *,
    ts_ms: int = NOON,
    key_id: str = "k1",
    model: str | None = "fast",
    upstream: str | None = "main",
    operation: Operation = Operation.CHAT,
    usage: Usage | None = USAGE,
    usage_source: UsageSource = UsageSource.UPSTREAM_FINAL,
    cost_micros: int | None = 7,
    latency_ms: float = 900.0,
    ttft_ms: float | None = 300.0,
) -> UsageEvent:
    return UsageEvent(
        ts_ms=ts_ms,
        request_id="r",
        key_id=key_id,
        operation=operation,
        transport="http",
        stream=True,
        upstream=upstream,
        model=model,
        usage=usage,
        usage_source=usage_source,
        outcome=outcome,
        cost_micros=cost_micros,
        latency_ms=latency_ms,
        ttft_ms=ttft_ms,
    )


TOKENS = st.none() | st.integers(0, 2**53 - 1)
EVENTS = st.builds(
    an_event,
    st.sampled_from(Outcome),
    ts_ms=st.integers(NOON, NOON + 3 * Span.DAY),
    key_id=st.sampled_from(("k1", "k2")),
    model=st.sampled_from(("fast", "slow", None)),
    upstream=st.sampled_from(("main", None)),
    operation=st.sampled_from(Operation),
    usage=st.none() | st.builds(Usage, TOKENS, TOKENS, TOKENS, TOKENS, TOKENS),
    usage_source=st.sampled_from(UsageSource),
    cost_micros=TOKENS,
    latency_ms=st.floats(0, 1e6),
    ttft_ms=st.none() | st.floats(0, 1e6),
)
ROLLUPS = st.lists(EVENTS, max_size=5).map(UsageRollup.of)


# -- one request ------------------------------------------------------------------------------------------------------


def test_one_request_is_counted_once() -> None:
    assert UsageRollup.of([an_event()]) == UsageRollup(
        requests=1,
        uncached_input=100,
        cache_read=20,
        cache_write=3,
        output=40,
        reasoning=5,
        cost_micros=7,
        latency=Histogram.of([900.0]),
        ttft=Histogram.of([300.0]),
    )


def test_every_outcome_has_an_ending() -> None:
    assert set(ENDINGS) == set(Outcome)


@pytest.mark.parametrize("outcome", Outcome)
def test_an_outcome_counts_as_what_the_table_says(outcome: Outcome) -> None:
    rollup = UsageRollup.of([an_event(outcome)])
    counted = (rollup.errors, rollup.aborted, rollup.refused)
    expected = {
        Ending.SERVED: (0, 0, 0),
        Ending.FAILED: (1, 0, 0),
        Ending.ABORTED: (0, 1, 0),
        Ending.REFUSED: (0, 0, 1),
    }
    assert rollup.requests == 1
    assert counted == expected[ENDINGS[outcome]]


def test_only_a_refusal_by_rule_is_no_error() -> None:
    """That there was no room is an error: nothing was wrong with the request."""
    refused = {outcome for outcome, ending in ENDINGS.items() if ending is Ending.REFUSED}
    assert refused == {outcome for outcome in Outcome if outcome.value.startswith("refused")} - {Outcome.REFUSED_BUSY}


def test_the_duration_of_a_refusal_is_in_no_percentile() -> None:
    events = [an_event(latency_ms=5000.0), an_event(Outcome.REFUSED_RATE, latency_ms=0.2, ttft_ms=None)]
    assert UsageRollup.of(events).latency == Histogram.of([5000.0])


def test_a_request_without_an_answer_is_in_no_time_to_first_token() -> None:
    rollup = UsageRollup.of([an_event(Outcome.TIMEOUT, ttft_ms=None)])
    assert (rollup.latency.total, rollup.ttft.total) == (1, 0)


def test_a_duration_that_is_no_number_is_refused() -> None:
    with pytest.raises(LocalError):
        fold([an_event(latency_ms=float("nan"))])


def test_what_nobody_told_adds_nothing() -> None:
    rollup = UsageRollup.of([an_event(usage=Usage(uncached_input=1)), an_event(usage=None)])
    assert (rollup.uncached_input, rollup.cache_read, rollup.cache_write) == (1, 0, 0)
    assert (rollup.output, rollup.reasoning) == (0, 0)


# -- what is not known ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "unknown"),
    [
        (an_event(), False),
        (an_event(usage=Usage(uncached_input=1, output=1)), False),
        (an_event(usage=None, usage_source=UsageSource.NONE), True),
        (an_event(usage=Usage(uncached_input=1)), True),
        (an_event(usage=Usage(output=1)), True),
        (an_event(operation=Operation.EMBEDDINGS, usage=Usage(uncached_input=1)), False),
        (an_event(operation=Operation.EMBEDDINGS, usage=Usage(output=1)), True),
        (an_event(operation=Operation.COUNT_TOKENS, usage=None), False),
        (an_event(Outcome.CLIENT_GONE, usage_source=UsageSource.UPSTREAM_PARTIAL), True),
        (an_event(Outcome.CLIENT_GONE, usage=None), True),
        (an_event(Outcome.UPSTREAM_BROKE, usage=None), True),
        (an_event(Outcome.TIMEOUT, usage=None), True),
        (an_event(Outcome.TIMEOUT, usage=None, upstream=None), False),
        (an_event(Outcome.SHUTDOWN, usage=None), True),
        (an_event(Outcome.INTERNAL_ERROR, usage=None), True),
        (an_event(Outcome.UPSTREAM_ERROR, usage=None), False),
        (an_event(Outcome.UPSTREAM_UNREACHABLE, usage=None), False),
        (an_event(Outcome.REFUSED_BUSY, usage=None), False),
        (an_event(Outcome.REFUSED_RATE, usage=None), False),
    ],
)
def test_usage_is_unknown_when_tokens_may_be_missing(event: UsageEvent, *, unknown: bool) -> None:
    """With a request that may have reached a model, of which not both sides were told for a finished answer."""
    assert is_usage_unknown(event) is unknown
    assert UsageRollup.of([event]).unknown_usage == unknown


@pytest.mark.parametrize(
    ("event", "unknown"),
    [
        (an_event(cost_micros=0), 0),
        (an_event(cost_micros=None), 1),
        (an_event(Outcome.CLIENT_GONE, cost_micros=None), 1),
        (an_event(Outcome.UPSTREAM_ERROR, cost_micros=None), 0),
        (an_event(Outcome.REFUSED_RATE, cost_micros=None, upstream=None), 0),
        (an_event(operation=Operation.COUNT_TOKENS, cost_micros=None), 0),
    ],
)
def test_a_cost_is_unknown_when_there_may_be_one(event: UsageEvent, unknown: int) -> None:
    rollup = UsageRollup.of([event])
    assert (rollup.unknown_cost, rollup.cost_micros) == (unknown, 0)


# -- sums -------------------------------------------------------------------------------------------------------------


@given(ROLLUPS, ROLLUPS, ROLLUPS)
def test_merging_is_associative_and_commutative(a: UsageRollup, b: UsageRollup, c: UsageRollup) -> None:
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c)) == UsageRollup.merged([c, a, b])
    assert merge(a, UsageRollup()) == a


@given(st.lists(st.integers(0, MAX_SUM), min_size=3, max_size=3))
def test_sums_that_no_column_holds_stay_at_the_largest(costs: list[int]) -> None:
    """In whatever order they are summed up."""
    a, b, c = (UsageRollup(cost_micros=cost, output=cost) for cost in costs)
    for x, y, z in itertools.permutations((a, b, c)):
        total = merge(merge(x, y), z)
        assert total.cost_micros == total.output == min(sum(costs), MAX_SUM)


@given(st.lists(EVENTS, max_size=12), st.lists(EVENTS, max_size=12))
def test_batches_sum_up_to_the_whole(first: list[UsageEvent], then: list[UsageEvent]) -> None:
    batches = itertools.chain(fold(first).items(), fold(then).items())
    assert merge_all(batches) == fold(first + then)


@given(st.lists(EVENTS, max_size=12))
def test_each_request_is_in_the_row_of_its_key(events: list[UsageEvent]) -> None:
    rows = fold(events)
    assert sum(rollup.requests for rollup in rows.values()) == len(events)
    for key, rollup in rows.items():
        assert key.minute_ms % Span.MINUTE == 0
        assert rollup == UsageRollup.of([event for event in events if RollupKey.of(event) == key])


def test_a_row_is_of_one_minute_key_model_and_upstream() -> None:
    events = [
        an_event(),
        an_event(ts_ms=NOON + 59_999),
        an_event(ts_ms=NOON + 60_000),
        an_event(key_id="k2"),
        an_event(model=None),
        an_event(upstream=None),
    ]
    rows = fold(events)
    assert [rollup.requests for rollup in rows.values()] == [2, 1, 1, 1, 1]
    assert next(iter(rows)) == RollupKey(minute_ms=NOON, key_id="k1", model="fast", upstream="main")


@given(st.lists(EVENTS, max_size=12), st.sampled_from((Span.HOUR, Span.DAY)))
def test_longer_spans_are_the_sums_of_shorter_ones(events: list[UsageEvent], span: Span) -> None:
    minutes = fold(events)
    rows = coarser(minutes.items(), span)
    assert rows == fold([evolve(event, ts_ms=span.start(event.ts_ms)) for event in events])
    assert coarser(coarser(minutes.items(), Span.HOUR).items(), span) == rows


@pytest.mark.parametrize(
    ("span", "start"), [(Span.MINUTE, NOON + 7_260_000), (Span.HOUR, NOON + 7_200_000), (Span.DAY, NOON - 43_200_000)]
)
def test_a_span_begins_where_utc_begins_it(span: Span, start: int) -> None:
    assert NOON % Span.DAY == Span.DAY / 2
    assert span.start(NOON + 7_265_123) == start
    assert span.start(start) == start


def test_rows_are_summed_up_by_whatever_group() -> None:
    rows = fold([an_event(), an_event(key_id="k2"), an_event(model=None)])
    by_model = regroup(rows.items(), lambda key: key.model)
    assert {model: rollup.requests for model, rollup in by_model.items()} == {"fast": 2, None: 1}
