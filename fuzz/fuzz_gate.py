"""Invariant: any order of inputs on any clock keeps the cap, loses no slot, starves no key and ends each ticket once.

An input is a script of letters: `a` to `h` ask for a slot for that key, a digit moves the clock, capitals are the other
inputs, some with the byte behind them as their number (`play`). What the gate promises is checked after each step, from
its events alone.
"""

import math
from collections.abc import Iterator

from attrs import define, evolve, field

from capi_core.errors import LocalError
from capi_core.gate import Gate
from capi_core.gate_events import Event, GateLimits, GateState, Granted, PauseCause, Queued, Refused, TicketState

__all__ = ["test_one_input"]

MOST_STEPS = 2000
CLOCK = (0.0, 0.25, 1.0, 4.5, 10.0, 30.0, 60.0, 7200.0, -1.0, -1e4)
SIZES = (1, 2, 3, 8)
PAUSES = (0.0, -1.0, 0.5, 9.0, 10.0, 45.0, 300.0, 1e9)
LIMITS = GateLimits(cap=2, max_queued=4, queue_timeout_s=10.0, max_pause_s=300.0, abuse_refusals=3, cool_down_s=5.0)


@define
class Watch:
    """What the events say of each ticket, and who had the turns."""

    keys: dict[int, str] = field(factory=dict)
    waiting: set[int] = field(factory=set)
    running: set[int] = field(factory=set)
    ended: set[int] = field(factory=set)
    turn: int = 0
    last_turn: dict[str, int] = field(factory=dict)
    waits_since: dict[str, int] = field(factory=dict)
    """The turn since which a key waits without a gap."""

    def asked(self, key: str, answer: Granted | Queued | Refused) -> None:
        assert answer.ticket == len(self.keys)
        self.keys[answer.ticket] = key
        self.waiting.add(answer.ticket)
        self.waits_since.setdefault(key, self.turn)
        if isinstance(answer, Queued):
            assert 1 <= answer.position <= len(self.waiting)
            assert answer.wait_s >= 1
        else:
            self.took([answer])

    def took(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Refused):
                assert event.retry_after_s is None or 1 <= event.retry_after_s <= LIMITS.max_pause_s + 60
                self.gone(event.ticket)
            else:
                self.granted(event.ticket)

    def granted(self, ticket: int) -> None:
        key = self.keys[ticket]
        assert ticket == min(other for other in self.waiting if self.keys[other] == key), "first come, first served"
        before = self.last_turn.get(key, -1)
        for other, since in self.waits_since.items():
            assert other == key or since > before or self.last_turn.get(other, -1) > before, "passed over"
        self.last_turn[key] = self.turn
        self.turn += 1
        self.waiting.remove(ticket)
        self.running.add(ticket)
        self.mind_gap(key)

    def gone(self, ticket: int) -> None:
        assert ticket not in self.ended
        self.waiting.discard(ticket)
        self.running.discard(ticket)
        self.ended.add(ticket)
        self.mind_gap(self.keys[ticket])

    def mind_gap(self, key: str) -> None:
        if all(self.keys[ticket] != key for ticket in self.waiting):
            self.waits_since.pop(key, None)

    def state(self, ticket: int) -> TicketState:
        if ticket in self.waiting:
            return TicketState.WAITING
        return TicketState.IN_FLIGHT if ticket in self.running else TicketState.ENDED


def play(gate: Gate, watch: Watch, letter: str, rest: Iterator[int], now: float) -> list[Event]:
    """One step; what became of others."""
    match letter:
        case "R":
            return end(gate, watch, next(rest, 0), now, release=True)
        case "C":
            return end(gate, watch, next(rest, 0), now, release=False)
        case "P":
            return gate.pause(PAUSES[next(rest, 0) % len(PAUSES)], PauseCause.RETRY_AFTER, now)
        case "L":
            number = next(rest, 0)
            cap, places = SIZES[number % len(SIZES)], SIZES[number // 4 % len(SIZES)]
            return gate.resize(evolve(LIMITS, cap=cap, max_queued=places), now)
        case "X":
            return gate.upstream_refused(now)
        case "V":
            return gate.resume(now)
        case "S":
            return gate.stop("", now)
        case "T":
            return gate.start(now)
        case "Z":
            return gate.drain(now)
        case _ if "a" <= letter <= "h":
            answer, others = gate.request(letter, now)
            watch.took(others)
            watch.asked(letter, answer)
            return []
        case _:
            return gate.advance(now)


def end(gate: Gate, watch: Watch, number: int, now: float, *, release: bool) -> list[Event]:
    """Releases or cancels any ticket, perhaps one that was never given out."""
    ticket = number % (len(watch.keys) + 1)
    before = gate.snapshot(now)
    try:
        events = (gate.release if release else gate.cancel)(ticket, now)
    except LocalError:  # there is no such ticket, or it has no slot; nothing may have changed
        assert ticket not in watch.keys or (release and ticket in watch.waiting)
        assert gate.snapshot(now) == before
        return []
    if ticket in watch.ended:
        assert gate.snapshot(now).repeated == before.repeated + 1
    else:
        watch.gone(ticket)
    return events


def check(gate: Gate, watch: Watch, now: float) -> None:
    seen = gate.snapshot(now)
    running, waiting = sum(seen.in_flight.values()), sum(seen.queued.values())
    assert (running, waiting) == (gate.in_flight, gate.queued) == (len(watch.running), len(watch.waiting))
    assert seen.issued == running + waiting + seen.released + seen.cancelled + sum(seen.refused.values())
    assert set(seen.queued) == set(watch.waits_since)
    for ticket in watch.keys:
        assert gate.ticket_state(ticket) is watch.state(ticket)
    if waiting:
        assert seen.state in (GateState.OPEN, GateState.PAUSED)
        assert seen.state is GateState.PAUSED or running >= seen.limits.cap, "a slot is free and somebody waits"
        assert now < gate.next_deadline() < now + LIMITS.max_pause_s + 1


def test_one_input(data: bytes) -> None:
    gate, watch = Gate(LIMITS), Watch()
    clock, latest = 0.0, -math.inf
    rest = iter(data[:MOST_STEPS])
    for byte in rest:
        letter = chr(byte)
        if letter in "0123456789":
            clock += CLOCK[int(letter)]
        latest = max(latest, clock)
        before = gate.in_flight
        events = play(gate, watch, letter, rest, clock)
        watch.took(events)
        assert gate.in_flight <= max(before, gate.snapshot(clock).limits.cap)
        check(gate, watch, latest)
    watch.took(gate.drain(clock))
    for ticket in sorted(watch.running):
        assert gate.release(ticket, clock) == []
        watch.gone(ticket)
    check(gate, watch, latest)
    assert (gate.in_flight, gate.queued, len(watch.ended)) == (0, 0, len(watch.keys))
