"""The in-flight gates of the upstream identities on trio: wait for a slot, have it, and give it back whatever happens.

`capi_core.gate` decides; here each waiter sleeps until its ticket's end or slot is told. There is no background task:
of those that wait, the one that came first keeps the time for all, by the deadline of its own scope. When it leaves,
the next one does. Nothing waits between a decision and its delivery, so the machine and its waiters never disagree:

- A waiter that is cancelled before it was granted leaves the queue.
- One that is granted and cancelled in the same tick gives the slot on.
- Between a grant and the caller's block there is no checkpoint at which a slot could be lost.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from attrs import define, field, frozen

from capi_core.gate import Gate
from capi_core.gate_events import Event, Granted, Queued, Refused, problem_refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from capi_core.errors import Problem
    from capi_core.gate_events import GateLimits, GateSnapshot, PauseCause, Refusal

__all__ = ["Slot", "SlotRefusedError", "Slots"]


@frozen
class Slot:
    """A slot that its holder has. `position`: where it stood in the queue when it came; 0: it had not to wait."""

    position: int
    waited_s: float


class SlotRefusedError(Exception):
    """There is no slot. `problem` is the caller's answer; `why` its reason; `waited_s` how long it waited for that."""

    def __init__(self, refused: Refused, waited_s: float) -> None:
        super().__init__(refused.why.value)
        self.problem: Problem = problem_refused(refused)
        self.why: Refusal = refused.why
        self.waited_s = waited_s


@define(eq=False)
class _Waiter:
    clock: trio.CancelScope = field(factory=trio.CancelScope)
    told: trio.Event = field(factory=trio.Event)
    outcome: Event | None = None


class Slots:
    """One identity's slots. Durations are in seconds; the clock is trio's."""

    def __init__(self, limits: GateLimits) -> None:
        self._gate = Gate(limits)
        self._waiters: OrderedDict[int, _Waiter] = OrderedDict()  # by ticket, in the order in which they came

    @property
    def in_flight(self) -> int:
        """Slots taken."""
        return self._gate.in_flight

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return self._gate.queued

    @property
    def is_paused(self) -> bool:
        """Whether nobody is let in for a while."""
        return self._gate.pause_left_s(trio.current_time()) > 0

    @asynccontextmanager
    async def hold(self, key_id: str) -> AsyncIterator[Slot]:
        """Waits for a slot in the name of a key, and holds it for the block. Raises `SlotRefusedError`.

        A checkpoint, also when the slot is free; the slot is given back without one.
        """
        await trio.lowlevel.checkpoint()  # a caller that has gone asks for nothing
        asked_at = trio.current_time()
        answer, others = self._gate.request(key_id, asked_at)
        self._deliver(others)
        ticket, position = answer.ticket, 0
        if isinstance(answer, Queued):
            position = answer.position
            answer = await self._outcome(ticket)
        if not isinstance(answer, Granted):
            raise SlotRefusedError(answer, trio.current_time() - asked_at)
        try:
            yield Slot(position, answer.waited_s)
        finally:
            self._deliver(self._gate.release(ticket, trio.current_time()))

    # -- signals of the upstream, and the operator's hand: as in `capi_core.gate.Gate` ------------------------------

    def pause(self, for_s: float, cause: PauseCause) -> None:
        """Holds grants back from now on; a longer pause goes on."""
        self._deliver(self._gate.pause(for_s, cause, trio.current_time()))

    def upstream_refused(self) -> None:
        """Counts a 403 or 429 of the upstream as a sign of abuse."""
        self._deliver(self._gate.upstream_refused(trio.current_time()))

    def resume(self) -> None:
        """Ends a pause before its time."""
        self._deliver(self._gate.resume(trio.current_time()))

    def resize(self, limits: GateLimits) -> None:
        """Changes the limits; who has a slot or waits keeps it."""
        self._deliver(self._gate.resize(limits, trio.current_time()))

    def stop(self, note: str) -> None:
        """The kill switch: refuses all that wait or come, until `start`."""
        self._deliver(self._gate.stop(note, trio.current_time()))

    def start(self) -> None:
        """Undoes `stop`."""
        self._deliver(self._gate.start(trio.current_time()))

    def drain(self) -> None:
        """Shuts down: refuses all that wait or come, for good."""
        self._deliver(self._gate.drain(trio.current_time()))

    def snapshot(self) -> GateSnapshot:
        """The gate as the operator sees it."""
        return self._gate.snapshot(trio.current_time())

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _outcome(self, ticket: int) -> Granted | Refused:
        """Sleeps until the ticket has a slot or has ended."""
        waiter = self._waiters[ticket] = _Waiter()
        try:
            while waiter.outcome is None:
                waiter.clock = trio.CancelScope()
                self._set_clock()
                with waiter.clock:
                    await waiter.told.wait()
                if waiter.outcome is None:  # the clock rang
                    self._deliver(self._gate.advance(trio.current_time()))
        except BaseException:
            # Cancelled, perhaps in the tick in which the slot was granted: then it goes to the next in turn.
            self._waiters.pop(ticket, None)
            if not isinstance(waiter.outcome, Refused):
                self._deliver(self._gate.cancel(ticket, trio.current_time()))
            raise
        return waiter.outcome

    def _deliver(self, events: Iterable[Event]) -> None:
        for event in events:
            waiter = self._waiters.pop(event.ticket)
            waiter.outcome = event
            waiter.told.set()
        self._set_clock()

    def _set_clock(self) -> None:
        """Has the first of those that wait keep the time: a scope's deadline costs no task and no wake-up."""
        if self._waiters:
            next(iter(self._waiters.values())).clock.deadline = self._gate.next_deadline()
