"""What the operator asked for at the start: at most one request every so many seconds, and a say in each.

A request passes here once, when it is about to be sent to an upstream; what is refused before that, or answered without
one, counts for nothing. The operator is asked first and the pace is kept last, for only so do two requests that were
approved within one interval leave an interval apart. What is too early and may not wait is refused before the operator
is bothered with it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import frozen

from capi_core.pacing import Go, Pacer, TooEarly, Wait, problem_too_early
from capi_trio.approval import Approval, ApprovalRefusedError, Asked
from capi_trio.terminal import open_terminal

if TYPE_CHECKING:
    from capi_core.errors import Problem

__all__ = [
    "ALL_ADMITTED",
    "OPEN_ADMISSION",
    "Admission",
    "AdmissionOptions",
    "AdmissionRefusedError",
    "Asked",
    "NotAdmitted",
    "Pace",
    "make_admission",
]

_MAX_WAITING: Final = 64
"""As many as wait for a slot by default (`limits.max_queued_per_identity`)."""


class NotAdmitted(enum.Enum):
    """Why a request is not let through."""

    TOO_EARLY = enum.auto()
    """For its turn; or for a place among those that wait for theirs."""
    QUEUE_FULL = enum.auto()
    """Too many wait for the operator."""
    DENIED = enum.auto()


class AdmissionRefusedError(Exception):
    """A request is not let through. `problem` is its caller's answer."""

    def __init__(self, problem: Problem, why: NotAdmitted) -> None:
        super().__init__(problem.code)
        self.problem = problem
        self.why = why


@frozen
class AdmissionOptions:
    """`manual`: the operator is asked about each request; `interval_s`: between requests; `wait`: for their turn."""

    manual: bool = False
    interval_s: float | None = None
    wait: bool = False


ALL_ADMITTED: Final = AdmissionOptions()


class Admission(Protocol):
    """Lets requests through, in its own time."""

    async def run(self) -> None:
        """To run beside the server, as long as it serves. May return before."""

    async def enter(self, asked: Asked) -> None:
        """Waits until this request may go on. Raises `AdmissionRefusedError`. Cancelled: its place is given up."""


class _OpenAdmission:
    async def run(self) -> None:
        await trio.lowlevel.checkpoint()

    async def enter(self, asked: Asked) -> None:
        """At once. No checkpoint: a gateway without these options does not pay for them."""


OPEN_ADMISSION: Final[Admission] = _OpenAdmission()


class Pace:
    """One request an interval, on trio's clock. Each that waits sleeps until an instant of its own."""

    def __init__(self, interval_s: float, *, wait: bool) -> None:
        self._pacer = Pacer(interval_s, _MAX_WAITING if wait else 0)
        self._naps: dict[int, trio.CancelScope] = {}  # by ticket

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._pacer.waiting

    def look(self) -> None:
        """Raises `AdmissionRefusedError` when `turn` would, at this moment."""
        refused = self._pacer.look(trio.current_time())
        if refused is not None:
            raise self._refusal(refused)

    async def turn(self) -> None:
        """Waits for this request's turn. Raises `AdmissionRefusedError`. Cancelled: those behind it move up."""
        await trio.lowlevel.checkpoint()  # a caller that has gone asks for nothing
        answer = self._pacer.ask(trio.current_time())
        if isinstance(answer, TooEarly):
            raise self._refusal(answer)
        if isinstance(answer, Wait):
            await self._until_gone(answer)

    async def _until_gone(self, wait: Wait) -> None:
        answer: Go | Wait = wait
        try:
            while isinstance(answer, Wait):
                nap = self._naps[wait.ticket] = trio.CancelScope(deadline=answer.until)
                with nap:
                    await trio.sleep_forever()
                answer = self._pacer.claim(wait.ticket, trio.current_time())
        except BaseException:
            self._pacer.cancel(wait.ticket)
            del self._naps[wait.ticket]
            for ticket, nap in self._naps.items():
                nap.deadline = self._pacer.due(ticket)
            raise
        del self._naps[wait.ticket]

    def _refusal(self, refused: TooEarly) -> AdmissionRefusedError:
        return AdmissionRefusedError(problem_too_early(self._pacer.interval_s, refused), NotAdmitted.TOO_EARLY)


class _GuardedAdmission:
    def __init__(self, approval: Approval | None, pace: Pace | None) -> None:
        self._approval = approval
        self._pace = pace

    async def run(self) -> None:
        if self._approval is not None:
            await self._approval.run()

    async def enter(self, asked: Asked) -> None:
        if self._pace is not None:
            self._pace.look()
        if self._approval is not None:
            try:
                await self._approval.ask(asked)
            except ApprovalRefusedError as refused:
                why = NotAdmitted.DENIED if refused.denied else NotAdmitted.QUEUE_FULL
                raise AdmissionRefusedError(refused.problem, why) from None
        if self._pace is not None:
            await self._pace.turn()


def make_admission(options: AdmissionOptions) -> Admission:
    """What the options ask for. The terminal is opened by `run`."""
    if not options.manual and options.interval_s is None:
        return OPEN_ADMISSION
    approval = Approval(open_terminal) if options.manual else None
    pace = None if options.interval_s is None else Pace(options.interval_s, wait=options.wait)
    return _GuardedAdmission(approval, pace)
