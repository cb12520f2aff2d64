"""Requests per minute: never too many, never refused for ever, and nothing gained from a strange clock."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import LocalError
from capi_core.limits import Buckets, Granted, RetryAfter, TokenBucket, problem_rate_limited

RATES = st.integers(1, 6000)
STEPS = st.lists(st.floats(0, 90, allow_nan=False), max_size=60)


def granted(bucket: TokenBucket, now: float, asked: int) -> int:
    """How many of so many requests at one instant are granted."""
    return sum(bucket.take(now) == Granted() for _ in range(asked))


def test_a_minutes_worth_may_be_used_at_once_and_then_one_each_interval() -> None:
    bucket = TokenBucket(6)
    assert granted(bucket, 100.0, 10) == 6
    assert bucket.take(100.0) == RetryAfter(10)
    assert bucket.take(107.5) == RetryAfter(3)
    assert bucket.take(110.0) == Granted()
    assert bucket.take(110.0) == RetryAfter(10)


def test_a_refused_request_is_not_counted() -> None:
    """A client that hammers on is not locked out by that."""
    bucket = TokenBucket(60)
    assert granted(bucket, 0.0, 10_000) == 60
    assert granted(bucket, 1.0, 2) == 1


def test_silence_saves_up_no_more_than_a_minute() -> None:
    bucket = TokenBucket(30)
    assert granted(bucket, 0.0, 30) == 30
    assert granted(bucket, 86_400.0, 1000) == 30


@pytest.mark.parametrize("start", [0.0, 1e6, 3e9], ids=["just started", "days", "a century"])
@given(rpm=st.integers(1, 300), asked=st.integers(0, 50))
def test_who_waits_as_told_is_granted(start: float, rpm: int, asked: int) -> None:
    """Also when a float clock has few digits left behind the point; and is never told to wait over a minute."""
    bucket = TokenBucket(rpm)
    now = start
    for _ in range(rpm + asked):
        answer = bucket.take(now)
        if isinstance(answer, RetryAfter):
            assert 1 <= answer.seconds <= 60
            now += answer.seconds
            assert bucket.take(now) == Granted()


@given(rpm=RATES, steps=STEPS)
def test_no_window_holds_more_than_its_share(rpm: int, steps: list[float]) -> None:
    """At most `rpm * (1 + W / 60)` in any W seconds, however requests arrive."""
    bucket, now = TokenBucket(rpm), 0.0
    taken: list[tuple[float, int]] = []
    for step in steps:
        now += step
        taken.append((now, granted(bucket, now, min(rpm + 1, 400))))
    for first, (start, _) in enumerate(taken):
        total = 0
        for end, count in taken[first:]:
            total += count
            assert total <= rpm * (1 + (end - start + 0.001) / 60) + 1e-6


@given(
    rpm=RATES,
    clock=st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=50),
)
def test_a_clock_that_jumps_gives_nothing_away(rpm: int, clock: list[float]) -> None:
    """D9: as many as the way that the clock really made forward is worth, and never a longer wait than a minute."""
    bucket = TokenBucket(rpm)
    total = 0
    for now in clock:
        total += granted(bucket, now, 50)
        answer = bucket.take(now)
        if isinstance(answer, RetryAfter):
            assert 1 <= answer.seconds <= 60
        else:
            total += 1
    way = max(max(clock) - clock[0], 0.0)
    assert total <= rpm * (1 + (way + 0.001) / 60) + 1e-6


def test_a_clock_set_back_and_forth_is_no_source_of_requests() -> None:
    bucket = TokenBucket(60)
    assert granted(bucket, 1000.0, 60) == 60
    for _ in range(100):
        assert bucket.take(0.0) == RetryAfter(1)
        assert bucket.take(1000.0) == RetryAfter(1)


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf])
def test_a_clock_that_is_no_number_is_the_embedders_fault(now: float) -> None:
    """Not-a-number must not become a refusal for ever (spec.md 5, 29); and changes nothing."""
    bucket = TokenBucket(1)
    with pytest.raises(LocalError):
        bucket.take(now)
    assert bucket.take(0.0) == Granted()


@pytest.mark.parametrize("rpm", [0, -1])
def test_no_rate_is_no_rate(rpm: int) -> None:
    """0 and less never mean "unlimited" (spec.md 1.5, S8): what they mean is decided before."""
    with pytest.raises(LocalError):
        TokenBucket(rpm)
    bucket = TokenBucket(1)
    with pytest.raises(LocalError):
        bucket.set_rpm(rpm)
    assert bucket.rpm == 1


def test_a_higher_rate_takes_effect_at_once() -> None:
    bucket = TokenBucket(2)
    assert granted(bucket, 0.0, 3) == 2
    bucket.set_rpm(10)
    assert granted(bucket, 0.0, 20) == 8, "what was used stays used"


def test_a_lower_rate_takes_effect_at_once_and_locks_nobody_out() -> None:
    bucket = TokenBucket(600)
    assert granted(bucket, 0.0, 600) == 600
    bucket.set_rpm(6)
    assert bucket.take(0.0) == RetryAfter(10), "not the 100 minutes that 600 requests would take at this rate"
    assert bucket.take(10.0) == Granted()


def test_changing_the_rate_to_and_fro_gives_nothing_away() -> None:
    bucket = TokenBucket(60)
    assert granted(bucket, 0.0, 60) == 60
    bucket.set_rpm(600)
    bucket.set_rpm(60)
    assert granted(bucket, 0.0, 60) == 0


def test_each_key_has_its_own_bucket() -> None:
    """B4: one caller's requests never count against another's."""
    buckets = Buckets()
    assert buckets.take("a", 1, 0.0) == Granted()
    assert buckets.take("a", 1, 0.0) == RetryAfter(60)
    assert buckets.take("b", 1, 0.0) == Granted()


def test_a_changed_override_counts_from_the_next_request() -> None:
    buckets = Buckets()
    assert buckets.take("a", 1, 0.0) == Granted()
    assert buckets.take("a", 2, 0.0) == Granted()
    assert buckets.take("a", 2, 0.0) == RetryAfter(30)
    assert buckets.take("a", 1, 0.0) == RetryAfter(60)


def test_memory_is_bounded_and_the_longest_unused_goes_first() -> None:
    """A5: 10,000 buckets unless said otherwise."""
    buckets = Buckets()
    for number in range(10_001):
        buckets.take(str(number), 1, 0.0)
        buckets.take("busy", 1, 0.0)
    assert len(buckets) == 10_000
    assert buckets.take("busy", 1, 0.0) == RetryAfter(60)
    assert buckets.take("10000", 1, 0.0) == RetryAfter(60)
    assert buckets.take("0", 1, 0.0) == Granted()


def test_a_bucket_unused_for_a_minute_is_as_good_as_new() -> None:
    """Which is why dropping it loses nothing."""
    bucket = TokenBucket(7)
    granted(bucket, 0.0, 7)
    assert granted(bucket, 60.0, 10) == 7


def test_no_room_at_all_would_limit_nothing() -> None:
    with pytest.raises(LocalError):
        Buckets(capacity=0)
    assert Buckets(capacity=1).take("a", 1, 0.0) == Granted()


def test_nobody_is_told_to_wait_for_no_time() -> None:
    """A `retry-after` of 0 would make a client ask again at once, in vain."""
    for early in (1e-3, 2e-4, 1.5e-4, 1.1e-4):
        bucket = TokenBucket(1)
        bucket.take(0.0)
        assert bucket.take(60 - early) == RetryAfter(1)


def test_the_answer_says_when_to_come_back() -> None:
    problem = problem_rate_limited(60, RetryAfter(7))
    assert (problem.status, problem.code, problem.retry_after_s) == (429, "rate_limit_exceeded", 7)
    assert "60 requests per minute" in problem.message
