"""One request an interval: never two too close, in the order of arrival, each at an instant of its own."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capi_core.errors import LocalError
from capi_core.pacing import Go, Pacer, TooEarly, Wait, problem_too_early

INTERVALS = st.floats(0.1, 3600, allow_nan=False)


def waiting(pacer: Pacer, now: float, count: int) -> list[Wait]:
    """So many requests at one instant, all of which have to wait."""
    answers = [pacer.ask(now) for _ in range(count)]
    waits = [answer for answer in answers if isinstance(answer, Wait)]
    assert len(waits) == count
    return waits


# Nobody waits.


def test_the_first_goes_at_once_and_the_next_one_an_interval_later() -> None:
    pacer = Pacer(10)
    assert pacer.ask(100.0) == Go()
    assert pacer.ask(100.0) == TooEarly(10, 0)
    assert pacer.ask(107.5) == TooEarly(3, 0)
    assert pacer.ask(110.0) == Go()
    assert pacer.ask(110.0) == TooEarly(10, 0)


def test_a_refused_request_is_not_counted() -> None:
    """A client that hammers on is not locked out by that."""
    pacer = Pacer(5)
    assert pacer.ask(0.0) == Go()
    assert {pacer.ask(step / 1000) for step in range(4000, 4900)} == {TooEarly(1, 0)}
    assert pacer.ask(5.0) == Go()


def test_silence_saves_nothing_up() -> None:
    pacer = Pacer(2)
    assert pacer.ask(0.0) == Go()
    assert pacer.ask(86_400.0) == Go()
    assert pacer.ask(86_400.0) == TooEarly(2, 0)


@pytest.mark.parametrize("start", [0.0, 1e6, 3e9], ids=["just started", "days", "a century"])
@given(interval_s=INTERVALS, early_s=st.floats(0, 3600))
def test_who_comes_back_as_told_goes_and_not_a_second_earlier(start: float, interval_s: float, early_s: float) -> None:
    """The `retry-after` is exact: rounded up to whole seconds, and no more."""
    pacer = Pacer(interval_s)
    assert pacer.ask(start) == Go()
    now = start + min(early_s, interval_s * 0.9)
    told = pacer.ask(now)
    assert isinstance(told, TooEarly)
    if told.retry_after_s > 1:
        assert pacer.look(now + told.retry_after_s - 1.001) is not None
    assert pacer.ask(now + told.retry_after_s) == Go()


@given(interval_s=INTERVALS, steps=st.lists(st.floats(0, 1000, allow_nan=False), max_size=60))
def test_no_two_go_within_one_interval(interval_s: float, steps: list[float]) -> None:
    pacer, now = Pacer(interval_s), 0.0
    gone: list[float] = []
    for step in steps:
        now += step
        if pacer.ask(now) == Go():
            gone.append(now)
    assert all(late - early >= interval_s - 0.001 for early, late in pairwise(gone))


def test_the_slack_of_the_clock_does_not_add_up() -> None:
    pacer, now, gone = Pacer(1.0), 0.0, 0
    while gone < 1001:
        gone += pacer.ask(now) == Go()
        now += 0.0099
    assert now >= 1000


def test_looking_is_not_asking() -> None:
    pacer = Pacer(10)
    assert pacer.look(0.0) is None
    assert pacer.look(0.0) is None
    assert pacer.ask(0.0) == Go()
    assert pacer.look(4.0) == TooEarly(6, 0)
    assert pacer.look(10.0) is None


# A line.


def test_each_that_waits_has_an_instant_of_its_own() -> None:
    """No thundering herd: spec.md 5, 29."""
    pacer = Pacer(10, max_waiting=8)
    assert pacer.ask(100.0) == Go()
    waits = waiting(pacer, 103.0, 4)
    assert [wait.until for wait in waits] == [110.0, 120.0, 130.0, 140.0]
    assert pacer.waiting == 4
    for wait in waits:
        assert pacer.claim(wait.ticket, wait.until) == Go()
    assert pacer.waiting == 0
    assert pacer.ask(149.0) == Wait(4, 150.0), "the last one's interval holds for who comes after it"


def test_all_woken_at_once_only_the_first_goes() -> None:
    """An embedder that wakes them in any order changes neither the order nor the pace."""
    pacer = Pacer(10, max_waiting=8)
    pacer.ask(0.0)
    first, second, third = waiting(pacer, 0.0, 3)
    assert pacer.claim(third.ticket, 10.0) == Wait(third.ticket, 30.0)
    assert pacer.claim(second.ticket, 10.0) == Wait(second.ticket, 20.0)
    assert pacer.claim(first.ticket, 10.0) == Go()
    assert pacer.claim(second.ticket, 10.0) == Wait(second.ticket, 20.0)


def test_who_claims_too_early_waits_on() -> None:
    pacer = Pacer(10, max_waiting=1)
    pacer.ask(0.0)
    (wait,) = waiting(pacer, 0.0, 1)
    assert pacer.claim(wait.ticket, 9.9) == wait
    assert pacer.claim(wait.ticket, 10.0) == Go()


def test_who_goes_late_moves_the_others_with_it() -> None:
    pacer = Pacer(10, max_waiting=8)
    pacer.ask(0.0)
    first, second = waiting(pacer, 0.0, 2)
    assert pacer.claim(first.ticket, 14.0) == Go()
    assert pacer.claim(second.ticket, 20.0) == Wait(second.ticket, 24.0)


@pytest.mark.parametrize(("leaver", "left"), [(0, [10.0, 20.0]), (1, [10.0, 20.0]), (2, [10.0, 20.0])])
def test_a_place_that_is_given_up_is_given_to_those_behind(leaver: int, left: list[float]) -> None:
    pacer = Pacer(10, max_waiting=8)
    pacer.ask(0.0)
    waits = waiting(pacer, 0.0, 3)
    pacer.cancel(waits.pop(leaver).ticket)
    assert [pacer.due(wait.ticket) for wait in waits] == left


def test_when_all_have_left_nobody_is_in_the_way() -> None:
    pacer = Pacer(10, max_waiting=8)
    pacer.ask(0.0)
    for wait in waiting(pacer, 1.0, 8):
        pacer.cancel(wait.ticket)
    assert pacer.ask(10.0) == Go()


def test_who_comes_in_time_does_not_overtake_those_in_line() -> None:
    pacer = Pacer(10, max_waiting=8)
    pacer.ask(0.0)
    (wait,) = waiting(pacer, 0.0, 1)
    assert pacer.ask(10.0) == Wait(1, 20.0)
    assert pacer.claim(wait.ticket, 10.0) == Go()


def test_a_full_line_takes_nobody_and_says_when_it_has_a_place() -> None:
    pacer = Pacer(10, max_waiting=2)
    pacer.ask(0.0)
    first, _ = waiting(pacer, 0.0, 2)
    assert pacer.ask(3.0) == TooEarly(7, 2)
    assert pacer.look(3.0) == TooEarly(7, 2)
    assert pacer.ask(12.0) == TooEarly(1, 2), "its first one is late: soon"
    assert pacer.claim(first.ticket, 12.0) == Go()
    assert isinstance(pacer.ask(12.0), Wait)


@given(
    interval_s=st.floats(0.5, 60),
    moves=st.lists(
        st.tuples(st.sampled_from(["ask", "claim", "leave"]), st.floats(0, 90), st.integers(0, 9)), max_size=80
    ),
)
def test_whoever_comes_and_goes_the_pace_and_the_order_hold(
    interval_s: float, moves: list[tuple[str, float, int]]
) -> None:
    pacer, now, line = Pacer(interval_s, max_waiting=6), 0.0, list[int]()
    gone: list[float] = []
    for move, step, pick in moves:
        now += step
        match move:
            case "ask":
                answer = pacer.ask(now)
                if isinstance(answer, Wait):
                    line.append(answer.ticket)
                elif answer == Go():
                    assert not line
                    gone.append(now)
            case "claim" if line:
                ticket = line[pick % len(line)]
                if pacer.claim(ticket, now) == Go():
                    assert line.pop(0) == ticket, "the first in line"
                    gone.append(now)
            case "leave" if line:
                pacer.cancel(line.pop(pick % len(line)))
            case _:
                pass
        assert pacer.waiting == len(line) <= 6
        dues = [pacer.due(ticket) for ticket in line]
        assert all(late - early >= interval_s - 0.001 for early, late in pairwise(dues))
    assert all(late - early >= interval_s - 0.001 for early, late in pairwise(gone))


# Strange clocks, and misuse.


def test_a_clock_that_goes_back_stands_still() -> None:
    pacer = Pacer(10, max_waiting=1)
    assert pacer.ask(1000.0) == Go()
    assert pacer.ask(0.0) == Wait(0, 1010.0)
    assert pacer.claim(0, 5.0) == Wait(0, 1010.0)
    assert pacer.ask(500.0) == TooEarly(10, 1), "never longer than an interval"
    assert pacer.claim(0, 1010.0) == Go()


@given(interval_s=INTERVALS, clock=st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=50))
def test_a_clock_that_jumps_is_no_source_of_requests(interval_s: float, clock: list[float]) -> None:
    pacer = Pacer(interval_s)
    gone = sum(pacer.ask(now) == Go() for now in clock)
    assert gone <= 1 + (max(clock) - clock[0] + 0.001) / interval_s
    told = pacer.look(clock[-1])
    assert told is None or told.retry_after_s <= math.ceil(interval_s)


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf])
def test_a_clock_that_is_no_number_is_the_embedders_fault(now: float) -> None:
    """Not-a-number must not become a refusal for ever (spec.md 5, 29); and changes nothing."""
    pacer = Pacer(1, max_waiting=1)
    for call in (pacer.look, pacer.ask):
        with pytest.raises(LocalError):
            call(now)
    assert pacer.ask(0.0) == Go()
    assert pacer.ask(0.0) == Wait(0, 1.0)
    with pytest.raises(LocalError):
        pacer.claim(0, now)
    assert pacer.claim(0, 1.0) == Go()


@pytest.mark.parametrize("ticket", [0, 1, 7, -1])
def test_a_ticket_that_does_not_wait_is_the_embedders_fault(ticket: int) -> None:
    pacer = Pacer(10, max_waiting=8)
    pacer.ask(0.0)
    gone, left, waits = waiting(pacer, 0.0, 3)
    pacer.claim(gone.ticket, 10.0)
    pacer.cancel(left.ticket)
    for call in (pacer.due, pacer.cancel, lambda unknown: pacer.claim(unknown, 10.0)):
        with pytest.raises(LocalError):
            call(ticket)
    assert pacer.due(waits.ticket) == 20.0


@pytest.mark.parametrize("interval_s", [0, -1, math.nan, math.inf])
def test_no_interval_is_no_interval(interval_s: float) -> None:
    with pytest.raises(LocalError):
        Pacer(interval_s)
    assert Pacer(0.5).interval_s == 0.5


def test_a_line_has_no_less_than_no_places() -> None:
    with pytest.raises(LocalError):
        Pacer(1, max_waiting=-1)


def test_the_answer_says_when_to_come_back() -> None:
    problem = problem_too_early(2.5, TooEarly(3, 0))
    assert (problem.status, problem.code, problem.retry_after_s) == (429, "rate_limited", 3)
    assert problem.message == "this gateway takes one request every 2.5 s; retry in 3 s"
    assert "and 64 wait for their turn already" in problem_too_early(60, TooEarly(60, 64)).message
