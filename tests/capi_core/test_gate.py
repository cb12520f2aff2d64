"""The in-flight gate: never above its cap, never a slot lost, nobody starved, and each ticket ends exactly once."""

import math
import random
from collections import Counter
from collections.abc import Iterable

import pytest
from attrs import define, evolve, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from capi_core.errors import LocalError
from capi_core.gate import Gate
from capi_core.gate_events import (
    Event,
    GateLimits,
    GateState,
    Granted,
    PauseCause,
    Queued,
    Refusal,
    Refused,
    TicketState,
)

ONE = GateLimits(cap=1, max_queued=8, queue_timeout_s=60.0)


def ask(gate: Gate, keys: str, now: float = 0.0) -> list[Granted | Queued | Refused]:
    """One request for each letter; what else happens must be nothing."""
    answers = []
    for key in keys:
        answer, others = gate.request(key, now)
        assert others == []
        answers.append(answer)
    return answers


def granted(events: Iterable[Event]) -> list[int]:
    assert all(isinstance(event, Granted) for event in events)
    return [event.ticket for event in events]


def whys(events: Iterable[Event]) -> list[tuple[int, Refusal]]:
    return [(event.ticket, event.why) for event in events if isinstance(event, Refused)]


# -- slots and turns ------------------------------------------------------------------------------------------------


def test_so_many_as_the_cap_go_at_once_and_the_others_wait() -> None:
    gate = Gate(GateLimits(cap=2))
    assert ask(gate, "aab", 5.0) == [
        Granted(0, 0.0),
        Granted(1, 0.0),
        Queued(2, position=1, wait_s=5, deadline=65.0),
    ]
    assert (gate.in_flight, gate.queued) == (2, 1)
    assert gate.release(0, 8.0) == [Granted(2, 3.0)]
    assert (gate.in_flight, gate.queued) == (2, 0)


def test_slots_go_round_over_the_keys() -> None:
    """One busy key cannot starve the others: design.md 1.3."""
    gate = Gate(ONE)
    answers = ask(gate, "aaaabc")
    assert [answer.position for answer in answers[1:] if isinstance(answer, Queued)] == [1, 2, 3, 2, 3]
    order, running = [], 0
    while gate.queued:
        [event] = gate.release(running, 0.0)
        running = event.ticket
        order.append(running)
    assert order == [1, 4, 5, 2, 3]


def test_a_full_queue_is_not_one_keys_alone() -> None:
    """Else who asks for 100 shuts out who asks for one: the excess of the former is what is refused."""
    gate = Gate(evolve(ONE, max_queued=3))
    ask(gate, "aaaa")
    answer, others = gate.request("b", 0.0)
    assert isinstance(answer, Queued)
    assert answer.position == 2
    assert whys(others) == [(3, Refusal.QUEUE_FULL)]
    answer, others = gate.request("b", 0.0)
    assert (whys([answer] if isinstance(answer, Refused) else []), others) == ([(5, Refusal.QUEUE_FULL)], [])
    answer, others = gate.request("c", 0.0)
    assert isinstance(answer, Queued)
    assert whys(others) == [(2, Refusal.QUEUE_FULL)]
    answer, others = gate.request("d", 0.0)
    assert isinstance(answer, Refused), "all have one: the queue is really full"
    assert gate.queued == 3


def test_a_gate_without_a_queue_grants_or_refuses() -> None:
    gate = Gate(GateLimits(cap=1, max_queued=0))
    assert ask(gate, "ab") == [Granted(0, 0.0), Refused(1, Refusal.QUEUE_FULL, 10)]
    assert gate.release(0, 1.0) == []
    assert ask(gate, "b", 1.0) == [Granted(2, 0.0)]


@pytest.mark.parametrize("asked", [20, 100])
def test_small_callers_next_to_a_busy_one(asked: int) -> None:
    """C4: cap 4, key a offers 20 or 100, b to e one each: none of these waits longer than two mean service times."""
    rng, gate, now = random.Random(asked), Gate(GateLimits(max_queued=64)), 0.0
    keys: dict[int, str] = {}
    ends: dict[int, float] = {}
    waits: dict[str, float] = {}

    def take(answers: Iterable[Granted | Queued | Refused]) -> None:
        for answer in answers:
            if isinstance(answer, Granted):
                ends[answer.ticket] = now + rng.uniform(8, 12)
                waits.setdefault(keys[answer.ticket], answer.waited_s)
                waits[keys[answer.ticket]] = max(waits[keys[answer.ticket]], answer.waited_s)

    for number, key in enumerate(["a"] * asked + list("bcde")):
        keys[number] = key
        answer, others = gate.request(key, now)
        take([answer, *others])
    while ends:
        ticket = min(ends, key=lambda other: ends[other])
        now = ends.pop(ticket)
        take(gate.release(ticket, now))
    assert set(waits) == set("abcde"), "everybody was served"
    assert max(waits[key] for key in "bcde") <= 20.0
    assert max(waits.values()) <= 60.0


def test_equal_keys_get_equal_shares() -> None:
    """C4: Jain's index over equal keys is at least 0.95, also when one of them asks ten times as often."""
    rng, gate, now = random.Random(3), Gate(GateLimits(max_queued=1000, queue_timeout_s=1e6)), 0.0
    keys = {number: "aaaaaaaaaabcde"[number % 14] for number in range(700)}
    running = [answer.ticket for number in keys if isinstance(answer := ask(gate, keys[number])[0], Granted)]
    served: Counter[str] = Counter(keys[ticket] for ticket in running)
    while len({*gate.snapshot(now).queued}) == 5:
        now += rng.random()
        ticket = running.pop(rng.randrange(len(running)))
        for event in gate.release(ticket, now):
            running.append(event.ticket)
            served[keys[event.ticket]] += 1
    shares = list(served.values())
    assert sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)) >= 0.95


# -- ends of tickets ------------------------------------------------------------------------------------------------


def test_who_leaves_the_queue_is_not_served() -> None:
    gate = Gate(ONE)
    ask(gate, "abc")
    assert gate.cancel(1, 1.0) == []
    assert gate.ticket_state(1) is TicketState.ENDED
    assert granted(gate.release(0, 1.0)) == [2]


def test_who_is_gone_when_granted_gives_the_slot_on() -> None:
    gate = Gate(ONE)
    ask(gate, "abc")
    assert granted(gate.release(0, 1.0)) == [1]
    assert gate.ticket_state(1) is TicketState.IN_FLIGHT
    assert granted(gate.cancel(1, 1.0)) == [2]
    assert gate.snapshot(1.0).slot_s == 1.0, "a slot that was never used tells nothing about how long slots are held"


def test_ending_a_ticket_twice_frees_nothing_and_is_counted() -> None:
    gate = Gate(GateLimits(cap=2))
    ask(gate, "aabb")
    assert granted(gate.release(0, 1.0)) == [2]
    assert gate.release(0, 1.0) == []
    assert gate.cancel(0, 1.0) == []
    assert (gate.in_flight, gate.queued) == (2, 1)
    assert gate.snapshot(1.0).repeated == 2


def test_a_slot_that_is_not_there_cannot_be_released() -> None:
    gate = Gate(ONE)
    ask(gate, "ab")
    with pytest.raises(LocalError):
        gate.release(1, 0.0)
    for ticket in (2, -1):
        with pytest.raises(LocalError):
            gate.release(ticket, 0.0)
        with pytest.raises(LocalError):
            gate.cancel(ticket, 0.0)
    assert (gate.in_flight, gate.queued) == (1, 1)
    assert gate.snapshot(0.0).repeated == 0


def test_who_waits_too_long_is_refused_and_never_granted_later() -> None:
    gate = Gate(ONE)
    ask(gate, "a")
    ask(gate, "bc", 10.0)
    ask(gate, "d", 20.0)
    assert gate.next_deadline() == 70.0
    assert gate.advance(69.9) == []
    assert whys(gate.release(0, 70.0)) == [(1, Refusal.QUEUE_TIMEOUT), (2, Refusal.QUEUE_TIMEOUT)]
    assert gate.ticket_state(3) is TicketState.IN_FLIGHT
    assert gate.next_deadline() == math.inf


def test_a_new_request_finds_the_places_of_those_whose_time_is_over() -> None:
    gate = Gate(evolve(ONE, max_queued=1))
    ask(gate, "ab")
    answer, others = gate.request("c", 60.0)
    assert isinstance(answer, Queued)
    assert whys(others) == [(1, Refusal.QUEUE_TIMEOUT)]


# -- estimates ------------------------------------------------------------------------------------------------------


def test_estimates_follow_how_long_slots_are_held() -> None:
    gate = Gate(GateLimits(cap=2, max_queued=2))
    ask(gate, "ab")
    assert gate.release(0, 4.0) == []
    assert gate.snapshot(4.0).slot_s == 4.0
    assert gate.release(1, 12.0) == []
    assert gate.snapshot(12.0).slot_s == 5.0
    answers = ask(gate, "abcde", 12.0)
    assert [answer.wait_s for answer in answers if isinstance(answer, Queued)] == [3, 5]
    assert answers[-1] == Refused(6, Refusal.QUEUE_FULL, 8)


@pytest.mark.parametrize(("held_s", "retry_after_s"), [(0.0, 1), (0.2, 1), (1e6, 60)])
def test_nobody_is_told_to_come_back_at_once_or_in_hours(held_s: float, retry_after_s: int) -> None:
    gate = Gate(GateLimits(cap=1, max_queued=0))
    ask(gate, "a")
    gate.release(0, held_s)
    assert ask(gate, "ab", held_s)[1] == Refused(2, Refusal.QUEUE_FULL, retry_after_s)


# -- pauses ---------------------------------------------------------------------------------------------------------


def test_a_pause_holds_back_who_can_wait_and_refuses_who_cannot() -> None:
    gate = Gate(ONE)
    ask(gate, "ab", 0.0)
    ask(gate, "c", 40.0)
    assert gate.pause(30.0, PauseCause.RETRY_AFTER, 40.0) == [Refused(1, Refusal.PAUSED, 30)]
    assert gate.release(0, 45.0) == [], "there is a slot, but no grant before 70"
    assert ask(gate, "d", 45.0) == [Queued(3, position=2, wait_s=85, deadline=105.0)]
    assert gate.next_deadline() == 70.0
    assert gate.advance(69.9) == []
    assert gate.advance(70.0) == [Granted(2, 30.0)]
    assert gate.snapshot(70.0).state is GateState.OPEN


def test_a_pause_longer_than_anybody_may_wait_refuses_at_once_and_tells_its_end() -> None:
    gate = Gate(ONE)
    assert gate.pause(300.0, PauseCause.RETRY_AFTER, 100.1) == []
    assert ask(gate, "a", 100.1) == [Refused(0, Refusal.PAUSED, 300)]
    assert ask(gate, "a", 339.9) == [Refused(1, Refusal.PAUSED, 61)]
    assert isinstance(ask(gate, "a", 341.0)[0], Queued)
    assert gate.next_deadline() == pytest.approx(400.1)


def test_who_may_wait_just_until_the_end_of_a_pause_would_be_too_late() -> None:
    gate = Gate(ONE)
    gate.pause(60.0, PauseCause.RETRY_AFTER, 0.0)
    assert ask(gate, "a") == [Refused(0, Refusal.PAUSED, 60)]


def test_of_two_pauses_the_longer_counts() -> None:
    gate = Gate(ONE)
    gate.pause(50.0, PauseCause.RETRY_AFTER, 0.0)
    gate.pause(20.0, PauseCause.OPERATOR, 10.0)
    snapshot = gate.snapshot(10.0)
    assert (snapshot.state, snapshot.pause_cause, snapshot.pause_left_s) == (
        GateState.PAUSED,
        PauseCause.RETRY_AFTER,
        40.0,
    )
    gate.pause(41.0, PauseCause.OPERATOR, 10.0)
    assert (gate.snapshot(10.0).pause_cause, gate.snapshot(10.0).pause_left_s) == (PauseCause.OPERATOR, 41.0)


@pytest.mark.parametrize(("for_s", "left_s"), [(0.0, 0.0), (-1.0, 0.0), (-1e300, 0.0), (3600.5, 3600.0), (1e9, 3600.0)])
def test_pauses_are_bounded_whatever_an_upstream_asks_for(for_s: float, left_s: float) -> None:
    """C7: Retry-After of 0, -1, a date that is past, 1e9."""
    gate = Gate(ONE)
    gate.pause(for_s, PauseCause.RETRY_AFTER, 5.0)
    assert gate.snapshot(5.0).pause_left_s == left_s
    assert gate.snapshot(5.0).state is (GateState.PAUSED if left_s else GateState.OPEN)


@pytest.mark.parametrize("for_s", [math.nan, math.inf])
def test_an_endless_pause_is_the_embedders_fault(for_s: float) -> None:
    gate = Gate(ONE)
    with pytest.raises(LocalError):
        gate.pause(for_s, PauseCause.RETRY_AFTER, 0.0)
    assert ask(gate, "a") == [Granted(0, 0.0)]


def test_the_operator_ends_a_pause_before_its_time() -> None:
    gate = Gate(ONE)
    gate.pause(50.0, PauseCause.RETRY_AFTER, 0.0)
    ask(gate, "ab")
    assert granted(gate.resume(1.0)) == [0]
    assert gate.snapshot(1.0).pause_cause is None


def test_a_pause_that_is_over_is_not_shown() -> None:
    gate = Gate(ONE)
    gate.pause(5.0, PauseCause.RETRY_AFTER, 0.0)
    snapshot = gate.snapshot(5.0)
    assert (snapshot.state, snapshot.pause_cause, snapshot.pause_left_s) == (GateState.OPEN, None, 0.0)


# -- cool-downs -----------------------------------------------------------------------------------------------------


def refuse(gate: Gate, times: int, now: float) -> float:
    """So many refusals by the upstream at one instant; how long the gate is paused then."""
    for _ in range(times):
        assert gate.upstream_refused(now) == []
    return gate.snapshot(now).pause_left_s


def test_refusals_in_a_burst_cool_the_gate_down() -> None:
    gate = Gate(ONE)
    assert refuse(gate, 4, 0.0) == 0.0
    assert refuse(gate, 1, 59.5) == 60.0
    assert gate.snapshot(59.5).pause_cause is PauseCause.COOL_DOWN


def test_refusals_now_and_then_do_not() -> None:
    gate = Gate(ONE)
    for number in range(100):
        assert refuse(gate, 1, 15.0 * number) == 0.0


def test_each_cool_down_is_twice_as_long_up_to_the_bound() -> None:
    gate, now = Gate(ONE), 0.0
    lengths = []
    for _ in range(8):
        lengths.append(refuse(gate, 5, now))
        now += lengths[-1]
    assert lengths == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert refuse(gate, 5, now + 3600.0) == 60.0, "after an hour of peace it starts anew"


def test_what_is_refused_during_a_cool_down_was_sent_before_it() -> None:
    gate = Gate(ONE)
    assert refuse(gate, 5, 0.0) == 60.0
    assert refuse(gate, 50, 30.0) == 30.0
    assert refuse(gate, 4, 60.0) == 0.0


def test_a_cool_down_refuses_who_cannot_wait_so_long() -> None:
    gate = Gate(ONE)
    ask(gate, "ab")
    for _ in range(4):
        gate.upstream_refused(30.0)
    assert gate.upstream_refused(30.0) == [Refused(1, Refusal.PAUSED, 60)]


def test_an_operator_who_resumes_starts_over() -> None:
    gate = Gate(ONE)
    refuse(gate, 5, 0.0)
    gate.resume(1.0)
    assert refuse(gate, 4, 1.0) == 0.0
    gate.resume(1.0)
    assert refuse(gate, 4, 1.0) == 0.0
    assert refuse(gate, 1, 1.0) == 60.0


def test_refusals_that_led_to_a_cool_down_do_not_lead_to_the_next() -> None:
    gate = Gate(evolve(ONE, cool_down_s=5.0))
    assert refuse(gate, 5, 0.0) == 5.0
    assert refuse(gate, 4, 5.0) == 0.0
    assert refuse(gate, 1, 5.0) == 10.0


def test_a_longer_pause_of_the_upstreams_own_outlasts_a_cool_down() -> None:
    gate = Gate(ONE)
    gate.pause(600.0, PauseCause.RETRY_AFTER, 0.0)
    assert refuse(gate, 5, 0.0) == 600.0
    assert gate.snapshot(0.0).pause_cause is PauseCause.RETRY_AFTER


# -- the operator ---------------------------------------------------------------------------------------------------


def test_the_kill_switch_refuses_all_but_what_runs() -> None:
    gate = Gate(ONE)
    ask(gate, "abc")
    assert gate.stop("seat suspended", 1.0) == [Refused(1, Refusal.STOPPED, None), Refused(2, Refusal.STOPPED, None)]
    assert ask(gate, "d", 1.0) == [Refused(3, Refusal.STOPPED, None)]
    assert (gate.snapshot(1.0).state, gate.snapshot(1.0).note) == (GateState.STOPPED, "seat suspended")
    assert gate.in_flight == 1
    assert gate.release(0, 2.0) == []
    assert gate.start(3.0) == []
    assert (gate.snapshot(3.0).state, gate.snapshot(3.0).note) == (GateState.OPEN, None)
    assert ask(gate, "d", 3.0) == [Granted(4, 0.0)]


def test_a_pause_outlives_a_stop() -> None:
    gate = Gate(ONE)
    gate.pause(30.0, PauseCause.RETRY_AFTER, 0.0)
    gate.stop("", 1.0)
    assert (gate.snapshot(1.0).state, gate.snapshot(1.0).pause_left_s) == (GateState.STOPPED, 29.0)
    gate.start(2.0)
    assert isinstance(ask(gate, "a", 2.0)[0], Queued)


def test_the_kill_switch_comes_before_all_that_is_due() -> None:
    """Not one more request goes out, also when a pause has ended and nobody has looked yet."""
    gate = Gate(ONE)
    gate.pause(10.0, PauseCause.RETRY_AFTER, 0.0)
    ask(gate, "a")
    assert whys(gate.stop("", 20.0)) == [(0, Refusal.STOPPED)]
    assert gate.in_flight == 0


def test_a_drained_gate_stays_shut() -> None:
    gate = Gate(ONE)
    ask(gate, "ab")
    assert gate.drain(1.0) == [Refused(1, Refusal.SHUTTING_DOWN, None)]
    for events in (gate.start(1.0), ask(gate, "c", 1.0), gate.stop("late", 1.0), gate.drain(1.0)):
        assert all(isinstance(event, Refused) and event.why is Refusal.SHUTTING_DOWN for event in events)
    assert ask(gate, "c", 1.0) == [Refused(3, Refusal.SHUTTING_DOWN, None)]
    assert (gate.snapshot(1.0).state, gate.snapshot(1.0).note) == (GateState.DRAINING, None)
    assert gate.release(0, 2.0) == []
    assert gate.in_flight == 0


def test_a_smaller_gate_takes_nothing_away_and_a_larger_one_grants_at_once() -> None:
    gate = Gate(GateLimits(cap=3))
    ask(gate, "aaabbb")
    assert gate.resize(GateLimits(cap=1, max_queued=1), 0.0) == []
    assert (gate.in_flight, gate.queued) == (3, 3)
    assert gate.release(0, 0.0) == []
    assert gate.release(1, 0.0) == []
    assert granted(gate.resize(GateLimits(cap=3), 0.0)) == [3, 4]
    assert gate.in_flight == 3


def test_a_new_queue_timeout_is_for_who_comes_after_it() -> None:
    gate = Gate(ONE)
    ask(gate, "ab")
    gate.resize(evolve(ONE, queue_timeout_s=5.0), 0.0)
    ask(gate, "c")
    assert gate.next_deadline() == 5.0
    assert whys(gate.advance(5.0)) == [(2, Refusal.QUEUE_TIMEOUT)]
    assert gate.next_deadline() == 60.0


def test_the_snapshot_accounts_for_every_ticket() -> None:
    gate = Gate(evolve(ONE, cap=2, max_queued=3))
    ask(gate, "aabcb" + "c")
    gate.release(0, 3.0)
    gate.cancel(3, 3.0)
    snapshot = gate.snapshot(3.0)
    assert snapshot.in_flight == {"a": 1, "b": 1}
    assert snapshot.queued == {"b": 1}
    assert snapshot.peak_in_flight == 2
    assert (snapshot.issued, snapshot.granted, snapshot.released, snapshot.cancelled) == (6, 3, 1, 1)
    assert snapshot.refused == {Refusal.QUEUE_FULL: 1}


def test_a_hundred_thousand_steps_with_the_cap_changing_all_the_while() -> None:
    """C6: 8, 2, 8 slots: never more in flight than the cap, but for those that were when it fell."""
    rng, gate = random.Random(6), Gate(GateLimits(cap=8, max_queued=16, queue_timeout_s=50.0))
    alive: set[int] = set()
    issued = ended = 0
    for step in range(100_000):
        now, before = step * 0.5, gate.in_flight
        if step % 1000 == 0:
            events = gate.resize(evolve(gate.snapshot(now).limits, cap=2 if step % 2000 else 8), now)
        elif rng.random() < 0.5 or not alive:
            answer, events = gate.request(rng.choice("aaaaabbc"), now)
            issued += 1
            if isinstance(answer, Refused):
                ended += 1
            else:
                alive.add(answer.ticket)
        else:
            ticket = rng.choice(list(alive))
            alive.remove(ticket)
            ended += 1
            running = gate.ticket_state(ticket) is TicketState.IN_FLIGHT
            events = (gate.release if running else gate.cancel)(ticket, now)
        late = {event.ticket for event in events if isinstance(event, Refused)}
        assert late <= alive
        alive -= late
        ended += len(late)
        assert gate.in_flight <= max(2 if (step // 1000) % 2 else 8, before)
        assert len(alive) == gate.in_flight + gate.queued == issued - ended
    assert gate.snapshot(50_000.0).repeated == 0


# -- the clock ------------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back_grants_nothing_early_and_ends_nothing_late() -> None:
    """D9: it stands still until it is again where it was."""
    gate = Gate(ONE)
    ask(gate, "a", 1000.0)
    ask(gate, "b", 10.0)
    gate.pause(5.0, PauseCause.RETRY_AFTER, -500.0)
    assert gate.next_deadline() == 1005.0
    assert gate.release(0, 0.0) == []
    assert gate.snapshot(0.0).slot_s == 0.0
    assert gate.snapshot(0.0).pause_left_s == 5.0
    assert gate.advance(1004.0) == []
    assert gate.advance(1005.0) == [Granted(1, 5.0)]


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf, 1e11])
def test_a_clock_that_is_no_number_is_the_embedders_fault(now: float) -> None:
    gate = Gate(ONE)
    ask(gate, "ab")
    for call in (
        lambda: gate.request("c", now),
        lambda: gate.release(0, now),
        lambda: gate.cancel(0, now),
        lambda: gate.advance(now),
        lambda: gate.pause(1.0, PauseCause.OPERATOR, now),
        lambda: gate.upstream_refused(now),
        lambda: gate.resume(now),
        lambda: gate.resize(GateLimits(cap=9), now),
        lambda: gate.stop("", now),
        lambda: gate.start(now),
        lambda: gate.drain(now),
    ):
        with pytest.raises(LocalError):
            call()
    snapshot = gate.snapshot(0.0)
    assert (snapshot.state, snapshot.issued, gate.in_flight, gate.queued) == (GateState.OPEN, 2, 1, 1)
    assert granted(gate.release(0, 0.0)) == [1]


# -- against a naive model ------------------------------------------------------------------------------------------


@define
class Naive:
    """What the gate promises, in the plainest words: lists, and a look at all of them each time."""

    limits: GateLimits
    now: float = -math.inf
    paused_until: float = -math.inf
    shut: Refusal | None = None
    running: list[int] = field(factory=list)
    waiting: list[int] = field(factory=list)
    keys: dict[int, str] = field(factory=dict)
    deadlines: dict[int, float] = field(factory=dict)
    turns: list[str] = field(factory=list)  # the keys that wait, next one first
    refusals: list[float] = field(factory=list)
    cooling_until: float = -math.inf
    cool_down_s: float = 0.0

    def line(self, key: str) -> list[int]:
        return [ticket for ticket in self.waiting if self.keys[ticket] == key]

    def leave(self, ticket: int) -> None:
        self.waiting.remove(ticket)
        if not self.line(self.keys[ticket]):
            self.turns.remove(self.keys[ticket])

    def settle(self) -> list[tuple[int, Refusal | None]]:
        """Each event as its ticket and why it was refused; `None`: granted."""
        events: list[tuple[int, Refusal | None]] = []
        paused = self.paused_until > self.now
        horizon = self.paused_until if paused else self.now
        for ticket in sorted(self.waiting, key=lambda other: (self.deadlines[other], other)):
            if self.deadlines[ticket] <= horizon:
                self.leave(ticket)
                late = self.deadlines[ticket] <= self.now
                events.append((ticket, Refusal.QUEUE_TIMEOUT if late else Refusal.PAUSED))
        while self.waiting and not paused and len(self.running) < self.limits.cap:
            key = self.turns[0]
            ticket = self.line(key)[0]
            self.leave(ticket)
            if key in self.turns:
                self.turns.remove(key)
                self.turns.append(key)
            self.running.append(ticket)
            events.append((ticket, None))
        return events

    def request(self, ticket: int, key: str) -> tuple[str | Refusal, list[tuple[int, Refusal | None]]]:
        events = self.settle()
        self.keys[ticket], self.deadlines[ticket] = key, self.now + self.limits.queue_timeout_s
        if self.shut is not None:
            return self.shut, events
        if self.paused_until > self.now and self.deadlines[ticket] <= self.paused_until:
            return Refusal.PAUSED, events
        if self.paused_until <= self.now and len(self.running) < self.limits.cap:
            self.running.append(ticket)
            return "granted", events
        if len(self.waiting) >= self.limits.max_queued:
            longest = max(self.turns, key=lambda other: len(self.line(other)), default=key)
            if len(self.line(longest)) <= len(self.line(key)) + 1:
                return Refusal.QUEUE_FULL, events
            newest = self.line(longest)[-1]
            self.leave(newest)
            events.append((newest, Refusal.QUEUE_FULL))
        self.waiting.append(ticket)
        if key not in self.turns:
            self.turns.append(key)
        return "queued", events

    def close(self, why: Refusal) -> list[tuple[int, Refusal | None]]:
        if self.shut is not Refusal.SHUTTING_DOWN:
            self.shut = why
        events: list[tuple[int, Refusal | None]] = [(ticket, self.shut) for ticket in self.waiting]
        self.waiting, self.turns = [], []
        return events

    def refused(self) -> None:
        if self.now < self.cooling_until:
            return
        self.refusals = [at for at in self.refusals if self.now - at < self.limits.abuse_window_s] + [self.now]
        if len(self.refusals) >= self.limits.abuse_refusals:
            self.refusals = []
            again = self.now < self.cooling_until + self.limits.cool_down_memory_s
            self.cool_down_s = min(2 * self.cool_down_s if again else self.limits.cool_down_s, self.limits.max_pause_s)
            self.cooling_until = self.now + self.cool_down_s
            self.paused_until = max(self.paused_until, self.cooling_until)


class GateAgainstTheModel(RuleBasedStateMachine):
    """Any order of inputs: the same decisions as the model's, and what the gate promises at every step."""

    def __init__(self) -> None:
        super().__init__()
        limits = GateLimits(
            cap=2, max_queued=4, queue_timeout_s=20.0, abuse_refusals=2, cool_down_s=8.0, max_pause_s=32.0
        )
        self.gate, self.model = Gate(limits), Naive(limits)
        self.clock = 0.0
        self.issued = self.released = self.cancelled = 0
        self.highest_cap = limits.cap
        self.ended: set[int] = set()
        self.served: dict[str, list[int]] = {}

    def seen(self) -> float:
        """The clock, of which the gate learns now: between two calls it may go forth and back unseen."""
        self.model.now = max(self.model.now, self.clock)
        return self.clock

    def took(self, events: list[Event], expected: list[tuple[int, Refusal | None]]) -> None:
        """Events are the model's; no ticket ends twice; within a key, grants come in the order of tickets."""
        assert [(event.ticket, event.why if isinstance(event, Refused) else None) for event in events] == expected
        for event in events:
            assert event.ticket not in self.ended
            if isinstance(event, Refused):
                self.end(event)
            else:
                line = self.served.setdefault(self.model.keys[event.ticket], [])
                line.append(event.ticket)
                assert line == sorted(line)

    def end(self, refused: Refused) -> None:
        assert refused.ticket not in self.ended
        self.ended.add(refused.ticket)
        assert refused.retry_after_s is None or 1 <= refused.retry_after_s <= 60 + 32

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 19.5, 20.0, -3.0, -100.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock += seconds
        self.took(self.gate.advance(self.seen()), self.model.settle())

    @rule(seconds=st.sampled_from([0.5, 5.0]))
    def time_passes_unseen(self, seconds: float) -> None:
        self.clock += seconds

    @precondition(lambda self: self.gate.queued)
    @rule()
    def the_deadline_comes(self) -> None:
        """It is the earliest instant at which anything happens by itself, and then it does."""
        self.took(self.gate.advance(self.seen()), self.model.settle())
        due = self.gate.next_deadline()
        ends = [self.model.deadlines[ticket] for ticket in self.model.waiting]
        if ends and self.model.paused_until > self.model.now:
            ends.append(self.model.paused_until)
        assert due == min(ends, default=math.inf)
        if ends:
            self.clock = due
            self.took(self.gate.advance(self.seen()), self.model.settle())
            assert self.gate.next_deadline() > due

    @rule(key=st.sampled_from("aaaabbcd"))
    def ask(self, key: str) -> None:
        answer, others = self.gate.request(key, self.seen())
        verdict, expected = self.model.request(self.issued, key)
        assert answer.ticket == self.issued
        self.issued += 1
        self.took(others, expected)
        match answer:
            case Granted():
                assert verdict == "granted"
                self.served.setdefault(key, []).append(answer.ticket)
            case Queued():
                assert verdict == "queued"
                assert 1 <= answer.position <= self.gate.queued
                assert answer.wait_s >= 1
            case Refused():
                assert verdict is answer.why
                self.end(answer)

    @precondition(lambda self: self.model.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.model.running))
        self.model.running.remove(ticket)
        self.released += 1
        events = self.gate.release(ticket, self.seen())
        self.ended.add(ticket)
        self.took(events, self.model.settle())

    @precondition(lambda self: self.model.running or self.model.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([*self.model.running, *self.model.waiting]))
        if ticket in self.model.running:
            self.model.running.remove(ticket)
        else:
            self.model.leave(ticket)
        self.cancelled += 1
        events = self.gate.cancel(ticket, self.seen())
        self.ended.add(ticket)
        self.took(events, self.model.settle())

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), release=st.booleans())
    def end_again(self, data: st.DataObject, release: bool) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.ended)))
        events = (self.gate.release if release else self.gate.cancel)(ticket, self.seen())
        self.took(events, self.model.settle())

    @rule(
        cap=st.sampled_from([1, 2, 8]), max_queued=st.sampled_from([0, 1, 4, 9]), timeout=st.sampled_from([5.0, 20.0])
    )
    def resize(self, cap: int, max_queued: int, timeout: float) -> None:
        limits = evolve(self.model.limits, cap=cap, max_queued=max_queued, queue_timeout_s=timeout)
        self.model.limits = limits
        self.highest_cap = max(cap, self.gate.in_flight)
        self.took(self.gate.resize(limits, self.seen()), self.model.settle())

    @rule(for_s=st.sampled_from([-1.0, 0.0, 3.0, 19.0, 20.0, 25.0, 1e9]))
    def pause(self, for_s: float) -> None:
        self.seen()
        self.model.paused_until = max(self.model.paused_until, self.model.now + min(for_s, 32.0))
        self.took(self.gate.pause(for_s, PauseCause.RETRY_AFTER, self.seen()), self.model.settle())

    @rule()
    def upstream_refuses(self) -> None:
        self.seen()
        self.model.refused()
        self.took(self.gate.upstream_refused(self.seen()), self.model.settle())

    @rule()
    def resume(self) -> None:
        self.seen()
        self.model.paused_until, self.model.cooling_until, self.model.refusals = self.model.now, -math.inf, []
        self.took(self.gate.resume(self.seen()), self.model.settle())

    @rule()
    def stop(self) -> None:
        self.took(self.gate.stop("why", self.seen()), self.model.close(Refusal.STOPPED))

    @rule()
    def start(self) -> None:
        if self.model.shut is Refusal.STOPPED:
            self.model.shut = None
        self.took(self.gate.start(self.seen()), self.model.settle())

    @invariant()
    def slots_are_conserved(self) -> None:
        snapshot = self.gate.snapshot(self.clock)
        self.highest_cap = max(self.model.limits.cap, min(self.highest_cap, self.gate.in_flight))
        assert self.gate.in_flight == len(self.model.running) <= self.highest_cap
        assert snapshot.issued == self.issued
        assert snapshot.released == self.released
        assert snapshot.cancelled == self.cancelled
        refused = sum(snapshot.refused.values())
        assert refused == len(self.ended) - self.released - self.cancelled
        running, waiting = sum(snapshot.in_flight.values()), sum(snapshot.queued.values())
        assert snapshot.issued == running + waiting + snapshot.released + snapshot.cancelled + refused
        assert list(snapshot.queued) == self.model.turns
        assert (running, waiting) == (self.gate.in_flight, self.gate.queued)

    @invariant()
    def it_is_in_the_state_of_the_model(self) -> None:
        snapshot = self.gate.snapshot(self.clock)
        left_s = max(0.0, self.model.paused_until - max(self.clock, self.model.now))
        assert snapshot.pause_left_s == left_s
        assert (snapshot.state is GateState.STOPPED) == (self.model.shut is Refusal.STOPPED)
        assert (snapshot.state is GateState.PAUSED) == (left_s > 0 and self.model.shut is None)

    @override
    def teardown(self) -> None:
        """Whatever happened, the gate works on: all slots can be given back, and everybody who waits gets an end."""
        self.took(self.gate.drain(self.seen()), self.model.close(Refusal.SHUTTING_DOWN))
        for ticket in list(self.model.running):
            assert self.gate.release(ticket, self.clock) == []
        assert (self.gate.in_flight, self.gate.queued, self.gate.next_deadline()) == (0, 0, math.inf)


TestGateAgainstTheModel = GateAgainstTheModel.TestCase
TestGateAgainstTheModel.settings = settings(stateful_step_count=60)
