"""Who is let through when: the pace, the operator's say, both; and nothing at all where neither was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, assert_no_checkpoints, wait_all_tasks_blocked

from capi_core.commands import Operation
from capi_core.errors import Problem
from capi_trio import admission
from capi_trio.admission import (
    OPEN_ADMISSION,
    Admission,
    AdmissionOptions,
    AdmissionRefusedError,
    Asked,
    NotAdmitted,
    Pace,
    make_admission,
)
from capi_trio.terminal import Terminal

ASKED = Asked(Operation.MESSAGES, "m", "k", 10)


@define(eq=False)
class Caller:
    """A request that wants to be let through, and what became of it."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    let_in: float | None = None
    problem: Problem | None = None
    why: NotAdmitted | None = None

    async def run(self, door: Admission | Pace) -> None:
        with self.scope:
            try:
                await (door.turn() if isinstance(door, Pace) else door.enter(ASKED))
                self.let_in = trio.current_time()
            except AdmissionRefusedError as refused:
                self.problem, self.why = refused.problem, refused.why


async def come(nursery: trio.Nursery, door: Admission | Pace, count: int) -> list[Caller]:
    """So many requests, one after the other at one instant."""
    callers = [Caller() for _ in range(count)]
    for caller in callers:
        nursery.start_soon(caller.run, door)
        await wait_all_tasks_blocked()
    return callers


class Answers:
    """A terminal whose operator always says the same, after so many seconds."""

    def __init__(self, line: str, after_s: float = 0.0) -> None:
        self.line = line
        self.after_s = after_s
        self.questions = 0

    async def write(self, text: str) -> None:
        await trio.lowlevel.checkpoint()
        self.questions += text.startswith("allow?")

    async def read_line(self) -> str | None:
        await trio.sleep(self.after_s)
        return self.line

    def discard_input(self) -> None:
        """Nothing is typed ahead."""

    @asynccontextmanager
    async def sit_down(self) -> AsyncIterator[Terminal]:
        yield self


@asynccontextmanager
async def admitting(options: AdmissionOptions) -> AsyncIterator[tuple[Admission, trio.Nursery]]:
    """A server's admission, and where its requests run."""
    door = make_admission(options)
    async with trio.open_nursery() as background:
        background.start_soon(door.run)
        async with trio.open_nursery() as requests:
            yield door, requests
        background.cancel_scope.cancel()


# Nothing was asked for.


async def test_without_options_nothing_is_in_the_way() -> None:
    assert make_admission(AdmissionOptions()) is OPEN_ADMISSION
    await OPEN_ADMISSION.run()
    with assert_no_checkpoints():
        await OPEN_ADMISSION.enter(ASKED)


# The pace.


async def test_too_early_is_refused_with_the_exact_time(autojump_clock: MockClock) -> None:
    async with admitting(AdmissionOptions(interval_s=10)) as (door, requests):
        first, second = await come(requests, door, 2)
        await trio.sleep(6.5)
        (third,) = await come(requests, door, 1)
        await trio.sleep(4)
        (fourth,) = await come(requests, door, 1)
    assert (first.let_in, fourth.let_in) == (0.0, 10.5)
    told = [(caller.problem and caller.problem.retry_after_s, caller.why) for caller in (second, third)]
    assert told == [(10, NotAdmitted.TOO_EARLY), (4, NotAdmitted.TOO_EARLY)]
    assert second.problem is not None
    assert (second.problem.status, second.problem.code) == (429, "rate_limited")


async def test_who_waits_goes_in_turn_and_one_at_a_time(autojump_clock: MockClock) -> None:
    """No thundering herd: spec.md 5, 29."""
    async with admitting(AdmissionOptions(interval_s=10, wait=True)) as (door, requests):
        callers = await come(requests, door, 5)
    assert [caller.let_in for caller in callers] == [0.0, 10.0, 20.0, 30.0, 40.0]


@pytest.mark.parametrize("leaver", [1, 2, 3])
async def test_who_leaves_gives_its_place_to_those_behind(leaver: int, autojump_clock: MockClock) -> None:
    pace = Pace(10, wait=True)
    async with trio.open_nursery() as requests:
        callers = await come(requests, pace, 5)
        await trio.sleep(3)
        gone = callers.pop(leaver)
        gone.scope.cancel()
    assert gone.let_in is None
    assert [caller.let_in for caller in callers] == [0.0, 10.0, 20.0, 30.0]
    assert pace.waiting == 0


async def test_who_leaves_in_the_moment_of_its_turn_gives_it_to_the_next(autojump_clock: MockClock) -> None:
    pace = Pace(10, wait=True)
    async with trio.open_nursery() as requests:
        _, second, third = await come(requests, pace, 3)
        second.scope.deadline = 10.0
    assert (second.let_in, third.let_in) in ((10.0, 20.0), (None, 10.0))
    assert pace.waiting == 0


async def test_all_leave_and_the_next_one_finds_an_empty_line(autojump_clock: MockClock) -> None:
    pace = Pace(10, wait=True)
    async with trio.open_nursery() as requests:
        for caller in (await come(requests, pace, 9))[1:]:
            caller.scope.cancel()
        await trio.sleep(10)
        (late,) = await come(requests, pace, 1)
    assert late.let_in == 10.0


async def test_a_busy_event_loop_brings_nobody_closer_together(autojump_clock: MockClock) -> None:
    """Those whose instants have passed all wake at once, and still leave one after the other."""
    pace = Pace(1, wait=True)
    async with trio.open_nursery() as requests:
        callers = await come(requests, pace, 4)
        autojump_clock.jump(100)
    gone = [caller.let_in for caller in callers if caller.let_in is not None]
    assert gone == [0.0, 100.0, 101.0, 102.0]
    assert all(late - early >= 1 for early, late in pairwise(gone))


async def test_the_line_is_bounded(autojump_clock: MockClock) -> None:
    async with admitting(AdmissionOptions(interval_s=10, wait=True)) as (door, requests):
        callers = await come(requests, door, 66)
        assert callers[-1].problem is not None
        assert (callers[-1].problem.code, callers[-1].problem.retry_after_s) == ("rate_limited", 10)
        assert callers[-1].why is NotAdmitted.TOO_EARLY
        assert callers[-2].problem is None
        requests.cancel_scope.cancel()


async def test_who_has_gone_before_asking_takes_no_turn(autojump_clock: MockClock) -> None:
    pace, gone = Pace(10, wait=False), Caller()
    gone.scope.cancel()
    await gone.run(pace)
    await pace.turn()
    assert gone.let_in is None


# The operator's say, and both.


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers("y")
    monkeypatch.setattr(admission, "open_terminal", answers.sit_down)
    return answers


async def test_the_operator_is_asked(operator: Answers, autojump_clock: MockClock) -> None:
    async with admitting(AdmissionOptions(manual=True)) as (door, requests):
        (yes,) = await come(requests, door, 1)
        operator.line = "n"
        (no,) = await come(requests, door, 1)
    assert (yes.let_in, yes.problem, operator.questions) == (0.0, None, 2)
    assert no.problem is not None
    assert (no.problem.status, no.problem.code, no.why) == (403, "request_denied", NotAdmitted.DENIED)


async def test_a_full_queue_of_questions_is_told_from_a_no(operator: Answers, autojump_clock: MockClock) -> None:
    operator.after_s = 1e6
    async with admitting(AdmissionOptions(manual=True)) as (door, requests):
        callers = await come(requests, door, 33)
        assert callers[-1].problem is not None
        assert (callers[-1].problem.code, callers[-1].why) == ("approval_queue_full", NotAdmitted.QUEUE_FULL)
        requests.cancel_scope.cancel()


async def test_approved_at_once_they_still_leave_an_interval_apart(
    operator: Answers, autojump_clock: MockClock
) -> None:
    operator.after_s = 3
    async with admitting(AdmissionOptions(manual=True, interval_s=10, wait=True)) as (door, requests):
        callers = await come(requests, door, 3)
    assert [caller.let_in for caller in callers] == [3.0, 13.0, 23.0]


async def test_of_two_approved_within_one_interval_the_second_is_too_early(
    operator: Answers, autojump_clock: MockClock
) -> None:
    operator.after_s = 3
    async with admitting(AdmissionOptions(manual=True, interval_s=10)) as (door, requests):
        first, second = await come(requests, door, 2)
    assert (first.let_in, second.why, operator.questions) == (3.0, NotAdmitted.TOO_EARLY, 2)
    assert second.problem is not None
    assert second.problem.retry_after_s == 7


async def test_the_operator_is_not_bothered_with_what_comes_too_early(
    operator: Answers, autojump_clock: MockClock
) -> None:
    async with admitting(AdmissionOptions(manual=True, interval_s=10)) as (door, requests):
        (first,) = await come(requests, door, 1)
        await trio.sleep(1)
        (early,) = await come(requests, door, 1)
    assert first.let_in == 0.0
    assert (early.why, operator.questions) == (NotAdmitted.TOO_EARLY, 1)


async def test_a_no_takes_nobodys_turn(operator: Answers, autojump_clock: MockClock) -> None:
    operator.line = "n"
    async with admitting(AdmissionOptions(manual=True, interval_s=10)) as (door, requests):
        await come(requests, door, 1)
        operator.line = "y"
        (second,) = await come(requests, door, 1)
    assert second.let_in == 0.0
