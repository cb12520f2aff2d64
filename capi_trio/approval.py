"""Manual approval: each request is shown to the operator, who lets it pass or not; one question at a time.

    asking --"a"--> open      all that wait and all that come pass, for the rest of the run
           --end of the terminal's input--> closed    all are refused, for there is nobody to ask

A question is withdrawn when its client leaves. If it was the one on the screen, the operator may be about to answer it;
so the next one comes after a moment, and what was typed until then answers nothing.

What is shown comes from clients: it is cut, and holds no character that could command a terminal. Of a prompt only the
size is shown.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from capi_core.commands import Operation
from capi_core.errors import Problem
from capi_core.keys import mask_keys
from capi_trio.logs import get_logger
from capi_trio.terminal import NoTerminalError, printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from capi_trio.terminal import Terminal

__all__ = ["Approval", "ApprovalRefusedError", "Asked"]

_MAX_QUESTIONS: Final = 32
"""More than anybody answers before clients give up."""
_MOMENT_S: Final = 1.0
"""How long nothing is asked after a question was withdrawn: longer than it takes to notice."""
_SHOWN: Final = 80
"""Characters of a name."""
_CHOICE: Final = "  [y]es, [N]o, or yes to [a]ll from now on? "


class ApprovalRefusedError(Exception):
    """A request does not pass. `problem` is its caller's answer; `denied`: by the operator, or by there being none."""

    def __init__(self, problem: Problem, *, denied: bool) -> None:
        super().__init__(problem.code)
        self.problem = problem
        self.denied = denied


@frozen
class Asked:
    """What the operator learns of a request. `key`: its label or id; `size`: of its body, in bytes."""

    operation: Operation
    model: str
    key: str
    size: int

    def text(self) -> str:
        name = self.operation.name.lower()
        return f"{name}, model {_shown(self.model)}, key {_shown(self.key)}, {self.size:,} bytes"


class _Answer(enum.Enum):
    YES = enum.auto()
    NO = enum.auto()
    ALL = enum.auto()
    END = enum.auto()
    """Nobody can answer any more."""


class _Mode(enum.Enum):
    """See the module."""

    ASKING = enum.auto()
    OPEN = enum.auto()
    CLOSED = enum.auto()


_ANSWERS: Final = {
    "y": _Answer.YES,
    "yes": _Answer.YES,
    "": _Answer.NO,
    "n": _Answer.NO,
    "no": _Answer.NO,
    "a": _Answer.ALL,
    "all": _Answer.ALL,
}


@define(eq=False)
class _Question:
    text: str
    answered: trio.Event = field(factory=trio.Event)
    on_screen: trio.CancelScope = field(factory=trio.CancelScope)
    refusal: Problem | None = None


class Approval:
    """The operator's say. `run` has to run as long as requests are asked about."""

    def __init__(
        self,
        open_terminal: Callable[[], AbstractAsyncContextManager[Terminal]],
        *,
        max_questions: int = _MAX_QUESTIONS,
    ) -> None:
        self._open_terminal = open_terminal
        self._max_questions = max_questions
        self._mode = _Mode.ASKING
        self._questions: OrderedDict[_Question, None] = OrderedDict()  # the first one is on the screen
        self._arrival = trio.lowlevel.ParkingLot()
        self._log = get_logger("approval")

    @property
    def waiting(self) -> int:
        """Requests that have no answer yet."""
        return len(self._questions)

    async def ask(self, asked: Asked) -> None:
        """Waits for the operator's yes. Raises `ApprovalRefusedError`. Cancelled: the question is withdrawn."""
        await trio.lowlevel.checkpoint()  # a caller that has gone asks for nothing
        if self._mode is _Mode.OPEN:
            return
        if self._mode is _Mode.CLOSED:
            raise ApprovalRefusedError(_NOBODY_THERE, denied=True)
        if len(self._questions) >= self._max_questions:
            raise ApprovalRefusedError(_TOO_MANY, denied=False)
        question = _Question(asked.text())
        self._questions[question] = None
        self._arrival.unpark()
        try:
            await question.answered.wait()
        except BaseException:
            self._questions.pop(question, None)
            question.on_screen.cancel()
            raise
        if question.refusal is not None:
            raise ApprovalRefusedError(question.refusal, denied=True)

    async def run(self) -> None:
        """Asks the operator, until there is nothing to ask any more."""
        try:
            async with self._open_terminal() as terminal:
                while self._mode is _Mode.ASKING:
                    if self._questions:
                        await self._put(next(iter(self._questions)), terminal)
                    else:
                        await self._arrival.park()
        except NoTerminalError as error:
            self._end(str(error))

    async def _put(self, question: _Question, terminal: Terminal) -> None:
        with question.on_screen:
            self._settle(question, await self._answer_to(question, terminal))
            return
        await terminal.write("\n  withdrawn: its client has left\n")
        await trio.sleep(_MOMENT_S)

    async def _answer_to(self, question: _Question, terminal: Terminal) -> _Answer:
        terminal.discard_input()
        more = len(self._questions) - 1
        line_behind = f" ({more} more after this)" if more else ""
        await terminal.write(f"allow? {question.text}{line_behind}\n")
        while True:
            await terminal.write(_CHOICE)
            line = await terminal.read_line()
            if line is None:
                return _Answer.END
            answer = _ANSWERS.get(line.strip().lower())
            if answer is not None:
                return answer

    def _settle(self, question: _Question, answer: _Answer) -> None:
        match answer:
            case _Answer.YES:
                self._tell(question, None)
            case _Answer.NO:
                self._tell(question, _DENIED)
            case _Answer.ALL:
                self._mode = _Mode.OPEN
                self._log.warning("approval_for_all", next="every request passes until capi is started again")
                self._tell_all(None)
            case _:
                self._end("the terminal's input has ended")

    def _end(self, reason: str) -> None:
        self._mode = _Mode.CLOSED
        self._log.error("approval_ended", reason=reason, next="every request is refused until capi is started again")
        self._tell_all(_NOBODY_THERE)

    def _tell_all(self, refusal: Problem | None) -> None:
        for question in tuple(self._questions):
            self._tell(question, refusal)

    def _tell(self, question: _Question, refusal: Problem | None) -> None:
        self._questions.pop(question, None)  # its client may have left in this very moment
        question.refusal = refusal
        question.answered.set()


_DENIED: Final = Problem(403, "request_denied", "the operator of this gateway did not allow this request")
_NOBODY_THERE: Final = Problem(
    403, "request_denied", "this gateway asks its operator about each request, and nobody is there to be asked"
)
_TOO_MANY: Final = Problem(
    429, "approval_queue_full", "too many requests already wait for the operator's approval; try again later"
)


def _shown(text: str) -> str:
    """Somebody will paste a key there, or what moves a cursor."""
    shown = printable(mask_keys(text))
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
