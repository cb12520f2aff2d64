"""Manual approval: one question at a time, the answer is for the request on the screen, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
from attrs import define, field
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from capi_core.commands import Operation
from capi_core.errors import Problem
from capi_core.keys import format_key
from capi_trio.approval import Approval, ApprovalRefusedError, Asked
from capi_trio.terminal import NoTerminalError

PROMPT_END = "to [a]ll from now on? "


class Operator:
    """A terminal, and the person at it."""

    def __init__(self) -> None:
        self.screen = ""
        self.open = False
        self._keys, self._lines = trio.open_memory_channel[str | None](100)

    async def write(self, text: str) -> None:
        await trio.lowlevel.checkpoint()
        self.screen += text

    async def read_line(self) -> str | None:
        return await self._lines.receive()

    def discard_input(self) -> None:
        while self._lines.statistics().current_buffer_used:
            self._lines.receive_nowait()

    @asynccontextmanager
    async def sit_down(self) -> AsyncIterator[Operator]:
        self.open = True
        try:
            yield self
        finally:
            self.open = False

    async def type(self, *lines: str | None) -> None:
        """Types these lines, each when all else is quiet. `None`: Ctrl-D, or the terminal is closed."""
        for line in lines:
            self.press(line)
            await wait_all_tasks_blocked()

    def press(self, line: str | None) -> None:
        """The same, without waiting for what comes of it."""
        self._keys.send_nowait(line)

    def shown(self) -> str:
        """What has come onto the screen since the last look."""
        text, self.screen = self.screen, ""
        return text


@define(eq=False)
class Caller:
    """A request about which the operator is asked, and what became of it."""

    name: str = "m"
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    passed: bool = False
    problem: Problem | None = None
    denied: bool | None = None

    async def run(self, approval: Approval) -> None:
        with self.scope:
            try:
                await approval.ask(Asked(Operation.CHAT, self.name, "alice-laptop", 1234))
                self.passed = True
            except ApprovalRefusedError as refused:
                self.problem, self.denied = refused.problem, refused.denied

    @property
    def end(self) -> str | None:
        if self.passed:
            return "passed"
        return None if self.problem is None else self.problem.code


@define
class Desk:
    """An approval under way, with its operator."""

    nursery: trio.Nursery
    approval: Approval
    operator: Operator

    async def come(self, *names: str) -> list[Caller]:
        """Requests come, one after the other."""
        callers = [Caller(name) for name in names]
        for caller in callers:
            self.nursery.start_soon(caller.run, self.approval)
            await wait_all_tasks_blocked()
        return callers


@asynccontextmanager
async def desk(max_questions: int = 8) -> AsyncIterator[Desk]:
    operator = Operator()
    approval = Approval(operator.sit_down, max_questions=max_questions)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(approval.run)
        await wait_all_tasks_blocked()
        yield Desk(nursery, approval, operator)
        nursery.cancel_scope.cancel()
    assert not operator.open
    assert approval.waiting == 0


# What is asked.


async def test_the_operator_sees_who_asks_for_what_and_how_much(autojump_clock: MockClock) -> None:
    async with desk() as work:
        await work.come("claude-sonnet")
        assert work.operator.shown() == (
            "allow? chat, model claude-sonnet, key alice-laptop, 1,234 bytes\n"
            "  [y]es, [N]o, or yes to [a]ll from now on? "
        )


async def test_one_question_at_a_time_in_the_order_of_arrival(autojump_clock: MockClock) -> None:
    """Prompts never collide: spec.md 5, 29."""
    async with desk() as work:
        first, second, third = await work.come("one", "two", "three")
        screen = work.operator.shown()
        assert ("one" in screen, "two" in screen, "three" in screen) == (True, False, False)
        await work.operator.type("y")
        assert (first.end, second.end, third.end) == ("passed", None, None)
        assert "model two, key alice-laptop, 1,234 bytes (1 more after this)\n" in work.operator.shown()
        await work.operator.type("n")
        assert (second.end, third.end) == ("request_denied", None)
        await work.operator.type("y")
        assert third.end == "passed"


@pytest.mark.parametrize("name", ["\x1b[2Jm", "m\x07", "m\r\ny", "m\u202em", "\udcffm"])
def test_what_a_client_sends_does_not_command_the_terminal(name: str) -> None:
    for asked in (Asked(Operation.CHAT, name, "k", 1), Asked(Operation.CHAT, "m", name, 1)):
        text = asked.text()
        assert text.isprintable()
        assert "?" in text


def test_long_names_are_cut_and_keys_are_masked() -> None:
    secret = format_key(bytes(32))
    text = Asked(Operation.MESSAGES, f"{secret}{'x' * 500}", "k", 1).text()
    assert secret not in text
    assert "sha256:" in text
    assert len(text) < 200


# What is answered.


@pytest.mark.parametrize("line", ["y", "Y", "yes", " YES\r"])
async def test_yes(line: str, autojump_clock: MockClock) -> None:
    async with desk() as work:
        (caller,) = await work.come("m")
        await work.operator.type(line)
        assert caller.end == "passed"


@pytest.mark.parametrize("line", ["n", "N", "no", "", "  "])
async def test_no_is_what_an_empty_line_says_too(line: str, autojump_clock: MockClock) -> None:
    async with desk() as work:
        (caller,) = await work.come("m")
        await work.operator.type(line)
        assert caller.problem is not None
        assert (caller.problem.status, caller.problem.code, caller.denied) == (403, "request_denied", True)


async def test_anything_else_is_asked_again(autojump_clock: MockClock) -> None:
    async with desk() as work:
        (caller,) = await work.come("m")
        await work.operator.type("what?", "ja")
        assert caller.end is None
        assert work.operator.shown().count(PROMPT_END) == 3
        await work.operator.type("y")
        assert caller.end == "passed"


async def test_all_lets_pass_who_waits_and_who_comes(autojump_clock: MockClock) -> None:
    async with desk() as work:
        callers = await work.come("one", "two", "three")
        await work.operator.type("a")
        callers += await work.come("four")
        assert {caller.end for caller in callers} == {"passed"}
        assert not work.operator.open, "nobody is asked any more"


async def test_when_input_ends_who_waits_and_who_comes_is_refused(autojump_clock: MockClock) -> None:
    with capture_logs() as logs:
        async with desk() as work:
            callers = await work.come("one", "two", "three")
            await work.operator.type(None)
            callers += await work.come("four")
            assert {caller.end for caller in callers} == {"request_denied"}
            assert all(caller.problem is not None and "nobody is there" in caller.problem.message for caller in callers)
            assert not work.operator.open
    assert [line["event"] for line in logs] == ["approval_ended"]


async def test_a_terminal_that_cannot_be_opened_refuses_all(autojump_clock: MockClock) -> None:
    def gone() -> AbstractAsyncContextManager[Operator]:
        raise NoTerminalError("it is gone")

    approval, early, late = Approval(gone), Caller(), Caller()
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(early.run, approval)
            await wait_all_tasks_blocked()
            await approval.run()
            nursery.start_soon(late.run, approval)
    assert (early.end, late.end) == ("request_denied", "request_denied")
    assert [line["reason"] for line in logs] == ["it is gone"]


async def test_no_more_than_so_many_wait(autojump_clock: MockClock) -> None:
    async with desk(max_questions=2) as work:
        first, second, third = await work.come("one", "two", "three")
        assert third.problem is not None
        assert (third.problem.status, third.problem.code, third.denied) == (429, "approval_queue_full", False)
        assert (first.end, second.end) == (None, None)
        await work.operator.type("y")
        (fourth,) = await work.come("four")
        assert fourth.end is None


# Who leaves, and what is typed for nobody.


async def test_a_client_that_leaves_withdraws_the_question_on_the_screen(autojump_clock: MockClock) -> None:
    async with desk() as work:
        first, second = await work.come("one", "two")
        work.operator.shown()
        first.scope.cancel()
        await wait_all_tasks_blocked()
        assert work.operator.shown() == "\n  withdrawn: its client has left\n"
        await trio.sleep(1.5)
        assert "model two" in work.operator.shown()
        await work.operator.type("y")
        assert (first.end, second.end) == (None, "passed")


async def test_an_answer_to_a_withdrawn_question_is_no_answer_to_the_next(autojump_clock: MockClock) -> None:
    """The operator was about to say yes to the one; the other may be quite another thing."""
    async with desk() as work:
        first, second = await work.come("one", "two")
        first.scope.cancel()
        await trio.sleep(0.5)
        await work.operator.type("y")
        await trio.sleep(1)
        assert second.end is None
        await work.operator.type("n")
        assert second.end == "request_denied"


async def test_a_client_that_leaves_the_queue_is_never_asked_about(autojump_clock: MockClock) -> None:
    async with desk() as work:
        first, second, third = await work.come("one", "two", "three")
        second.scope.cancel()
        await wait_all_tasks_blocked()
        assert work.approval.waiting == 2
        await work.operator.type("y", "y")
        assert (first.end, second.end, third.end) == ("passed", None, "passed")
        assert "two" not in work.operator.screen
        assert "withdrawn" not in work.operator.screen


@pytest.mark.parametrize(("line", "end"), [("y", None), ("n", None), ("a", "passed"), (None, "request_denied")])
async def test_leaving_in_the_moment_of_the_answer_harms_nobody(
    line: str | None, end: str | None, autojump_clock: MockClock
) -> None:
    """A yes or no was for that request alone."""
    async with desk() as work:
        first, second = await work.come("one", "two")
        work.operator.press(line)
        first.scope.cancel()
        await trio.sleep(3)
        assert (first.end, second.end) == (None, end)
        await work.operator.type("y")
        assert second.end == (end or "passed")


async def test_what_is_typed_before_a_question_answers_nothing(autojump_clock: MockClock) -> None:
    async with desk() as work:
        await work.operator.type("y", "a", None)
        (caller,) = await work.come("m")
        assert caller.end is None
        await work.operator.type("y")
        assert caller.end == "passed"


async def test_who_has_gone_before_asking_asks_for_nothing(autojump_clock: MockClock) -> None:
    async with desk() as work:
        gone = Caller()
        gone.scope.cancel()
        await gone.run(work.approval)
        await wait_all_tasks_blocked()
        assert work.operator.screen == ""


async def test_the_end_of_the_server_is_not_held_up_by_a_question(autojump_clock: MockClock) -> None:
    async with desk() as work:
        await work.come("one", "two")
    assert not work.operator.open
