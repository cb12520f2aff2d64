"""The in-flight gate of one upstream identity: a cap, and a fair queue in front of it, with the clock passed in.

Theory of operation. Each request gets a ticket, which ends exactly once:

    request ->  waiting  --granted-->  in flight  --release-->  ended
                   |                       |
                   +-- cancel, refused     +-- cancel (the slot is given on)

- Slots go round over the client keys that wait (`capi_core.fair_queue`). Only when nobody waits is a request granted at
  once. When the queue is full, the key with the longest line makes room for a key with a shorter one.
- A pause holds grants back, not requests: who can still be served before its deadline waits. Who cannot is refused at
  once instead of waiting in vain. Of two pauses the one that ends later counts.
- Slots in flight are never taken away: not by a lower cap, a pause, a stop or a drain. Higher limits take effect at
  once; a new queue timeout is for requests that come after it.

Tickets are numbered in order, so an ended ticket is known from one that was never given out, without remembering it:
ending it again changes nothing and is counted, and what was never given out is the embedder's fault.

Every input returns what became of *other* tickets, in order. Call `advance` when `next_deadline` has come. A clock that
goes back stands still until it is again where it was.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping
from typing import Final

from attrs import frozen

from capi_core.errors import LocalError
from capi_core.fair_queue import FairQueue, Waiter
from capi_core.gate_events import (
    Event,
    GateLimits,
    GateSnapshot,
    GateState,
    Granted,
    PauseCause,
    Queued,
    Refusal,
    Refused,
    TicketState,
)

__all__ = ["Gate"]

_FIRST_GUESS_S: Final = 10.0
"""How long a slot is held, as long as none has been given back."""
_SMOOTHING: Final = 8
"""Each new time counts for an eighth, as in TCP's round-trip estimate (RFC 6298 section 2)."""
_MAX_ESTIMATE_S: Final = 60
"""For a guess, a minute is enough: a client may well ignore a longer `retry-after`, and come back within seconds."""
_MAX_CLOCK_S: Final = 1e10
"""300 years. Beyond, a float loses the fractions of a second, and with them the order of deadlines."""
_CLOCK_SLACK_S: Final = 1e-4
"""Keeps the last digit of a float clock from making 31 seconds of 30. Who comes that much early waits that much."""

_TURNED_AWAY: Final[Mapping[GateState, Refusal]] = {
    GateState.STOPPED: Refusal.STOPPED,
    GateState.DRAINING: Refusal.SHUTTING_DOWN,
}


@frozen
class _Slot:
    key: str
    since: float


@frozen
class _Pause:
    until: float
    cause: PauseCause


class Gate:
    """One identity's slots. `now` is in seconds of a monotonic clock; `LocalError` when that is not a sane number."""

    def __init__(self, limits: GateLimits) -> None:
        self._limits = limits
        self._now = -_MAX_CLOCK_S  # the latest instant seen
        self._switch = GateState.OPEN  # never PAUSED: a gate that is stopped may be paused besides
        self._note: str | None = None
        self._pause: _Pause | None = None
        self._slots: dict[int, _Slot] = {}
        self._queue = FairQueue()
        self._refusals: deque[float] = deque()  # when the upstream refused, within the window
        self._cooling_until = -math.inf
        self._cool_down_s = 0.0
        self._slot_s: float | None = None
        self._next_ticket = 0
        self._peak = self._granted = self._released = self._cancelled = self._repeated = 0
        self._refused: Counter[Refusal] = Counter()

    # -- tickets ------------------------------------------------------------------------------------------------

    def request(self, key: str, now: float) -> tuple[Granted | Queued | Refused, list[Event]]:
        """Asks for a slot: what becomes of the new ticket, and what became of others."""
        self._tick(now)
        events = self._settle()
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        waiter = Waiter(key, self._now, self._now + self._limits.queue_timeout_s)
        if self._switch in _TURNED_AWAY:
            return self._refuse(ticket, _TURNED_AWAY[self._switch]), events
        if self._pause is not None and waiter.deadline <= self._pause.until:
            return self._refuse(ticket, Refusal.PAUSED), events
        if self._has_room():  # and nobody waits, or it would have been taken
            return self._grant(ticket, waiter), events
        if len(self._queue) >= self._limits.max_queued:
            excess = self._queue.excess(key)
            if excess is None:
                return self._refuse(ticket, Refusal.QUEUE_FULL), events
            self._queue.leave(excess)
            events.append(self._refuse(excess, Refusal.QUEUE_FULL))
        position = self._queue.place(key)
        self._queue.join(ticket, waiter)
        return Queued(ticket, position, self._estimate(position), waiter.deadline), events

    def release(self, ticket: int, now: float) -> list[Event]:
        """Gives a slot back when its request is over; how long it was held goes into the estimates.

        Raises `LocalError` for a ticket that waits or was never given out; one that has ended is only counted.
        """
        state = self.ticket_state(ticket)
        if state is TicketState.WAITING:
            raise LocalError("a ticket that waits has no slot to release; cancel it")
        self._tick(now)
        if state is TicketState.IN_FLIGHT:
            held_s = self._now - self._slots.pop(ticket).since
            self._slot_s = held_s if self._slot_s is None else self._slot_s + (held_s - self._slot_s) / _SMOOTHING
            self._released += 1
        else:
            self._repeated += 1
        return self._settle()

    def cancel(self, ticket: int, now: float) -> list[Event]:
        """Ends a ticket whose caller has gone, whether it waits or was granted meanwhile: then its slot is given on.

        Raises `LocalError` for a ticket that was never given out; one that has ended is only counted.
        """
        state = self.ticket_state(ticket)
        self._tick(now)
        if state is TicketState.ENDED:
            self._repeated += 1
            return self._settle()
        if state is TicketState.WAITING:
            self._queue.leave(ticket)
        else:
            del self._slots[ticket]
        self._cancelled += 1
        return self._settle()

    def advance(self, now: float) -> list[Event]:
        """Lets time pass: deadlines, and the end of a pause."""
        self._tick(now)
        return self._settle()

    def next_deadline(self) -> float:
        """When `advance` has something to do, if nothing else happens before; infinite when nobody waits."""
        first = self._queue.first_deadline()
        return first if self._pause is None or first == math.inf else min(first, self._pause.until)

    def ticket_state(self, ticket: int) -> TicketState:
        """Raises `LocalError` for a ticket that was never given out."""
        if ticket in self._slots:
            return TicketState.IN_FLIGHT
        if ticket in self._queue:
            return TicketState.WAITING
        if 0 <= ticket < self._next_ticket:
            return TicketState.ENDED
        raise LocalError("there is no such ticket")

    # -- the upstream's signals -----------------------------------------------------------------------------------

    def pause(self, for_s: float, cause: PauseCause, now: float) -> list[Event]:
        """Holds grants back from now on, at most `max_pause_s`; nothing for 0 and less. `LocalError`: not finite."""
        if not math.isfinite(for_s):
            raise LocalError("a pause is a finite number of seconds")
        self._tick(now)
        self._hold_back(for_s, cause)
        return self._settle()

    def upstream_refused(self, now: float) -> list[Event]:
        """Counts a 403 or 429 of the upstream as a sign of abuse, and cools the gate down when they are many.

        During a cool-down nothing is counted: what is refused then was sent before it.
        """
        self._tick(now)
        if self._now < self._cooling_until:
            return self._settle()
        self._refusals.append(self._now)
        while self._now - self._refusals[0] >= self._limits.abuse_window_s:
            self._refusals.popleft()
        if len(self._refusals) >= self._limits.abuse_refusals:
            self._refusals.clear()
            again = self._now < self._cooling_until + self._limits.cool_down_memory_s
            wanted_s = 2 * self._cool_down_s if again else self._limits.cool_down_s
            self._cool_down_s = min(wanted_s, self._limits.max_pause_s)
            self._cooling_until = self._now + self._cool_down_s
            self._hold_back(self._cool_down_s, PauseCause.COOL_DOWN)
        return self._settle()

    # -- the operator ---------------------------------------------------------------------------------------------

    def resume(self, now: float) -> list[Event]:
        """Ends a pause before its time, and forgets what led to it."""
        self._tick(now)
        self._pause = None
        self._refusals.clear()
        self._cooling_until = -math.inf
        return self._settle()

    def resize(self, limits: GateLimits, now: float) -> list[Event]:
        """Changes the limits. Who has a slot or waits keeps it, also above the new limits."""
        self._tick(now)
        self._limits = limits
        return self._settle()

    def stop(self, note: str, now: float) -> list[Event]:
        """The kill switch: refuses all that wait or come, until `start`. `note`: why, for the operator's eyes."""
        return self._close(GateState.STOPPED, note, now)

    def start(self, now: float) -> list[Event]:
        """Undoes `stop`; a pause goes on. Nothing undoes `drain`."""
        self._tick(now)
        if self._switch is GateState.STOPPED:
            self._switch, self._note = GateState.OPEN, None
        return self._settle()

    def drain(self, now: float) -> list[Event]:
        """Shuts down: refuses all that wait or come, for good. Drained when `in_flight` is 0."""
        return self._close(GateState.DRAINING, None, now)

    @property
    def in_flight(self) -> int:
        """Slots taken."""
        return len(self._slots)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def pause_left_s(self, now: float) -> float:
        """How much longer it is paused, at `now`: 0 when it is not. Changes nothing."""
        return 0.0 if self._pause is None else max(0.0, self._pause.until - max(now, self._now))

    def snapshot(self, now: float) -> GateSnapshot:
        """The gate at `now`; changes nothing."""
        left_s = self.pause_left_s(now)
        paused = self._switch is GateState.OPEN and left_s > 0
        return GateSnapshot(
            state=GateState.PAUSED if paused else self._switch,
            pause_cause=self._pause.cause if self._pause is not None and left_s > 0 else None,
            pause_left_s=left_s,
            note=self._note,
            limits=self._limits,
            in_flight=Counter(slot.key for slot in self._slots.values()),
            queued=self._queue.by_key(),
            peak_in_flight=self._peak,
            slot_s=self._held_s(),
            issued=self._next_ticket,
            granted=self._granted,
            released=self._released,
            cancelled=self._cancelled,
            refused=Counter(self._refused),
            repeated=self._repeated,
        )

    # -- inside ---------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if not abs(now) <= _MAX_CLOCK_S:
            raise LocalError("the clock must be a number of seconds, within centuries of 0")
        self._now = max(now, self._now)

    def _settle(self) -> list[Event]:
        """Does what has become due or possible. Deadlines first: no slot goes to who is too late."""
        if self._pause is not None and self._pause.until <= self._now:
            self._pause = None
        events: list[Event] = []
        horizon = self._now if self._pause is None else self._pause.until
        while (overdue := self._queue.take_overdue(horizon)) is not None:
            ticket, waiter = overdue
            why = Refusal.QUEUE_TIMEOUT if waiter.deadline <= self._now else Refusal.PAUSED
            events.append(self._refuse(ticket, why))
        while self._queue and self._has_room():
            events.append(self._grant(*self._queue.take()))
        return events

    def _close(self, switch: GateState, note: str | None, now: float) -> list[Event]:
        """Refuses all that wait before anything else is looked at: not one more is granted."""
        self._tick(now)
        if self._switch is not GateState.DRAINING:
            self._switch, self._note = switch, note
        tickets = self._queue.tickets()
        for ticket in tickets:
            self._queue.leave(ticket)
        return [self._refuse(ticket, _TURNED_AWAY[self._switch]) for ticket in tickets]

    def _hold_back(self, for_s: float, cause: PauseCause) -> None:
        until = self._now + min(for_s, self._limits.max_pause_s)
        if until > (self._now if self._pause is None else self._pause.until):
            self._pause = _Pause(until, cause)

    def _has_room(self) -> bool:
        return self._pause is None and len(self._slots) < self._limits.cap

    def _grant(self, ticket: int, waiter: Waiter) -> Granted:
        self._slots[ticket] = _Slot(waiter.key, self._now)
        self._peak = max(self._peak, len(self._slots))
        self._granted += 1
        return Granted(ticket, self._now - waiter.since)

    def _refuse(self, ticket: int, why: Refusal) -> Refused:
        self._refused[why] += 1
        if why in _TURNED_AWAY.values():
            return Refused(ticket, why, None)
        if why is Refusal.PAUSED:
            return Refused(ticket, why, _whole_seconds(self._pause_left_s()))
        return Refused(ticket, why, self._estimate(len(self._queue) + 1))

    def _estimate(self, position: int) -> int:
        """In how many seconds so many grants are likely to have been made."""
        guess_s = min(position * self._held_s() / self._limits.cap, _MAX_ESTIMATE_S)
        return _whole_seconds(self._pause_left_s() + guess_s)

    def _held_s(self) -> float:
        return _FIRST_GUESS_S if self._slot_s is None else self._slot_s

    def _pause_left_s(self) -> float:
        return 0.0 if self._pause is None else self._pause.until - self._now


def _whole_seconds(seconds: float) -> int:
    return max(1, math.ceil(seconds - _CLOCK_SLACK_S))
