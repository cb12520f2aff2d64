"""Slots on trio: whatever is cancelled whenever, none is lost, nobody is left waiting, and turns are the machine's."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import define, evolve, field
from trio.testing import MockClock, wait_all_tasks_blocked

from capi_core.gate_events import GateLimits, GateState, PauseCause, Refusal
from capi_trio.slots import Slot, SlotRefusedError, Slots

ONE = GateLimits(cap=1, max_queued=8, queue_timeout_s=60.0)


@define(eq=False)
class Caller:
    """A request that wants a slot, and what became of it."""

    key: str
    hold_s: float = 10.0
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    slot: Slot | None = None
    began: float | None = None
    refused: SlotRefusedError | None = None
    over: bool = False

    async def run(self, slots: Slots) -> None:
        with self.scope:
            try:
                async with slots.hold(self.key) as self.slot:
                    self.began = trio.current_time()
                    await trio.sleep(self.hold_s)
            except SlotRefusedError as error:
                self.refused = error
        self.over = True


async def queue_up(nursery: trio.Nursery, slots: Slots, keys: str, hold_s: float = 10.0) -> list[Caller]:
    """A caller for each letter, one after the other, until all have what they can have for now."""
    callers = [Caller(key, hold_s) for key in keys]
    for caller in callers:
        nursery.start_soon(caller.run, slots)
        await wait_all_tasks_blocked()
    return callers


@asynccontextmanager
async def holding(slots: Slots) -> AsyncIterator[Callable[[], None]]:
    """The only slot is taken; the function gives it back without a checkpoint."""
    async with trio.open_nursery() as nursery:
        first = Caller("first", hold_s=1e6)
        nursery.start_soon(first.run, slots)
        await wait_all_tasks_blocked()
        assert slots.in_flight == 1
        yield first.scope.cancel


def unharmed(slots: Slots) -> bool:
    """No slot is taken, nobody waits, and no ticket was ended twice."""
    return (slots.in_flight, slots.queued, slots.snapshot().repeated) == (0, 0, 0)


async def test_a_free_slot_is_had_at_once(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with slots.hold("a") as slot:
        assert slot == Slot(position=0, waited_s=0.0)
        assert slots.in_flight == 1
    assert unharmed(slots)


async def test_who_waits_learns_where_it_stood_and_how_long_it_waited(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with trio.open_nursery() as nursery:
        callers = await queue_up(nursery, slots, "aab")
    assert [caller.slot for caller in callers] == [Slot(0, 0.0), Slot(1, 10.0), Slot(2, 20.0)]
    assert unharmed(slots)


async def test_turns_go_round_over_the_keys(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with trio.open_nursery() as nursery:
        callers = await queue_up(nursery, slots, "aaaabc", hold_s=1.0)
    assert [caller.began for caller in callers] == [0.0, 1.0, 4.0, 5.0, 2.0, 3.0]


async def test_several_slots_at_once_are_given_in_turn(autojump_clock: MockClock) -> None:
    slots, order = Slots(ONE), list[str]()

    async def run(name: str) -> None:
        async with slots.hold(name[0]):
            order.append(name)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for name in ("x", "a1", "a2", "a3", "b1", "c1"):
            nursery.start_soon(run, name)
            await wait_all_tasks_blocked()
        slots.resize(evolve(ONE, cap=3))
        await wait_all_tasks_blocked()
        assert slots.in_flight == 3
        assert sorted(order) == ["a1", "b1", "x"]
    assert set(order[3:]) == {"a2", "a3", "c1"}
    assert unharmed(slots)


async def test_a_block_that_fails_gives_its_slot_back(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    with pytest.raises(ZeroDivisionError):
        async with slots.hold("a"):
            raise ZeroDivisionError
    assert unharmed(slots)


async def test_who_has_gone_before_asking_asks_for_nothing(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with slots.hold("a"):
            raise AssertionError
    assert slots.snapshot().issued == 0


# -- time -----------------------------------------------------------------------------------------------------------


async def test_who_waits_too_long_is_told_so(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with holding(slots) as give_back, trio.open_nursery() as nursery:
        [caller] = await queue_up(nursery, slots, "a")
        await trio.sleep(59.9)
        assert not caller.over
        await trio.sleep(0.2)
        assert caller.refused is not None
        assert (caller.refused.why, caller.refused.waited_s) == (Refusal.QUEUE_TIMEOUT, 60.0)
        problem = caller.refused.problem
        assert (problem.status, problem.code, problem.retry_after_s) == (429, "queue_timeout", 10)
        give_back()
    assert unharmed(slots)


@pytest.mark.parametrize("leaves", [0, 1, 2])
async def test_each_has_its_own_time_whoever_leaves(autojump_clock: MockClock, leaves: int) -> None:
    """The first that waits keeps the time for all; when it leaves, another does."""
    slots = Slots(ONE)
    async with holding(slots) as give_back, trio.open_nursery() as nursery:
        callers = []
        for _ in range(3):
            callers += await queue_up(nursery, slots, "a")
            await trio.sleep(1)
        callers[leaves].scope.cancel()
        await trio.sleep(100)
        give_back()
    others = [caller.refused for caller in callers if caller is not callers[leaves]]
    assert [refused is not None and refused.waited_s for refused in others] == [60.0, 60.0]
    assert callers[leaves].refused is None
    assert unharmed(slots)


async def test_who_is_granted_no_longer_keeps_the_time(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with holding(slots) as give_back, trio.open_nursery() as nursery:
        first, second = await queue_up(nursery, slots, "ab", hold_s=1e3)
        await trio.sleep(5)
        give_back()
        await trio.sleep(50)
        assert first.began == 5.0
        assert not second.over
        await trio.sleep(10)
        assert second.refused is not None
        assert second.refused.waited_s == 60.0
    assert unharmed(slots)


async def test_a_shorter_time_of_a_later_one_counts_for_itself(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with holding(slots) as give_back, trio.open_nursery() as nursery:
        [first] = await queue_up(nursery, slots, "a")
        slots.resize(evolve(ONE, queue_timeout_s=3.0))
        [second] = await queue_up(nursery, slots, "b")
        await trio.sleep(3.1)
        assert second.refused is not None
        assert second.refused.waited_s == 3.0
        assert not first.over
        give_back()
    assert first.slot is not None
    assert first.slot.waited_s == pytest.approx(3.1)
    assert unharmed(slots)


# -- cancellation ---------------------------------------------------------------------------------------------------


async def test_who_is_cancelled_while_waiting_leaves_the_queue(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with holding(slots) as give_back, trio.open_nursery() as nursery:
        first, second = await queue_up(nursery, slots, "ab")
        first.scope.cancel()
        await wait_all_tasks_blocked()
        assert (first.over, slots.queued) == (True, 1)
        give_back()
    assert (first.slot, second.slot) == (None, Slot(2, 0.0))
    assert unharmed(slots)


async def test_cancelled_and_then_granted_in_the_same_tick_gives_the_slot_on(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with trio.open_nursery() as nursery:
        async with slots.hold("x"):
            first, second = await queue_up(nursery, slots, "ab")
            first.scope.cancel()
        assert slots.snapshot().in_flight == {"a": 1}, "the machine has granted it"
    assert first.began is None, "it never ran"
    assert second.began == 0.0
    assert unharmed(slots)


async def test_granted_and_then_cancelled_in_the_same_tick_gives_the_slot_on(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with trio.open_nursery() as nursery:
        async with slots.hold("x"):
            first, second = await queue_up(nursery, slots, "ab")
        first.scope.cancel()
    assert first.began == 0.0, "it was told before; its first checkpoint ends it"
    assert second.began == 0.0
    assert unharmed(slots)


async def test_cancelled_and_then_refused_in_the_same_tick_ends_once(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with trio.open_nursery() as nursery, slots.hold("x"):
        [caller] = await queue_up(nursery, slots, "a")
        caller.scope.cancel()
        slots.stop("")
    assert (caller.over, caller.slot, caller.refused) == (True, None, None)
    assert unharmed(slots)


@pytest.mark.parametrize("round_", range(8))
async def test_granted_in_the_tick_in_which_its_clock_rings(autojump_clock: MockClock, round_: int) -> None:
    """It keeps the time for a pause, whose end wakes it; trio's dice say which of the two tasks is first."""
    slots = Slots(ONE)
    async with trio.open_nursery() as nursery, slots.hold("x"):
        [caller] = await queue_up(nursery, slots, "a")
        await trio.sleep(59.0)
        slots.pause(0.5, PauseCause.OPERATOR)
        await trio.sleep(0.5)
    assert caller.slot == Slot(1, 59.5)
    assert unharmed(slots)


@pytest.mark.parametrize("round_", range(8))
async def test_a_slot_that_comes_free_in_the_tick_of_a_deadline_is_too_late(
    autojump_clock: MockClock, round_: int
) -> None:
    slots = Slots(ONE)
    async with trio.open_nursery() as nursery, slots.hold("x"):
        first, second = await queue_up(nursery, slots, "aa")
        slots.resize(evolve(ONE, queue_timeout_s=99.0))
        [third] = await queue_up(nursery, slots, "a")
        await trio.sleep_until(trio.current_time() + 60.0)
    for caller in (first, second):
        assert caller.refused is not None
        assert caller.refused.waited_s == 60.0
    assert third.slot == Slot(3, 60.0)
    assert unharmed(slots)


async def test_a_mass_cancel_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    slots = Slots(GateLimits(cap=4, max_queued=1000))
    with trio.CancelScope() as everything:
        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(Caller(str(number % 7), 5.0).run, slots)
            await trio.sleep(12)
            assert (slots.in_flight, slots.queued) == (4, 488)
            everything.cancel()
    assert unharmed(slots)
    async with slots.hold("a") as slot:
        assert slot.position == 0


@pytest.mark.parametrize("seed", range(5))
async def test_a_thousand_callers_and_none_is_lost_or_stuck(autojump_clock: MockClock, seed: int) -> None:
    """Callers come, hold, fail and are cancelled at random; limits, pauses and the switch change under them."""
    rng, slots = random.Random(seed), Slots(GateLimits(max_queued=40, queue_timeout_s=20.0))
    over = 0

    async def caller() -> None:
        nonlocal over
        await trio.sleep(rng.uniform(0, 200))
        # Whole seconds, so that much falls into the same tick.
        with trio.move_on_after(rng.choice([0, 1, 2, 5, 30, 1e3])):
            try:
                async with slots.hold(rng.choice("aaaaabbcd")):
                    assert slots.in_flight <= 4
                    await trio.sleep(rng.choice([0, 1, 1, 2]))
                    if rng.random() < 0.1:
                        raise ZeroDivisionError
            except (SlotRefusedError, ZeroDivisionError):
                pass
        over += 1

    async def operator() -> None:
        while over < 1000:
            await trio.sleep(rng.choice([1, 3]))
            match rng.randrange(7):
                case 0:
                    limits = slots.snapshot().limits
                    slots.resize(evolve(limits, cap=rng.choice([2, 3, 4]), max_queued=rng.choice([5, 20, 40])))
                case 1:
                    slots.pause(rng.choice([1, 5, 15]), PauseCause.RETRY_AFTER)
                case 2:
                    slots.upstream_refused()
                case 3:
                    slots.stop("")
                    await trio.sleep(1)
                    slots.start()
                case _:
                    slots.resume()

    with trio.fail_after(1500):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operator)
            for _ in range(1000):
                nursery.start_soon(caller)
    snapshot = slots.snapshot()
    assert over == 1000
    assert snapshot.peak_in_flight == 4
    assert snapshot.released > 100
    assert snapshot.cancelled > 10, "while they waited"
    assert snapshot.refused  # for which reasons, is for trio's scheduler to throw
    assert unharmed(slots)


# -- signals --------------------------------------------------------------------------------------------------------


async def test_a_full_queue_refuses_and_makes_room_for_a_smaller_caller(autojump_clock: MockClock) -> None:
    slots = Slots(evolve(ONE, max_queued=2))
    async with trio.open_nursery() as nursery:
        callers = await queue_up(nursery, slots, "aaaab", hold_s=1.0)
        assert [caller.over for caller in callers] == [False, False, True, True, False]
    assert callers[2].refused is not None
    assert callers[3].refused is not None
    problem = callers[3].refused.problem
    assert (problem.status, problem.code, problem.retry_after_s) == (429, "queue_full", 30)
    assert callers[4].slot == Slot(2, 2.0)
    assert unharmed(slots)


async def test_a_pause_holds_all_back_until_it_ends(autojump_clock: MockClock) -> None:
    slots = Slots(evolve(ONE, cap=2))
    slots.pause(30.0, PauseCause.RETRY_AFTER)
    async with trio.open_nursery() as nursery:
        callers = await queue_up(nursery, slots, "abc")
        assert slots.snapshot().state is GateState.PAUSED
    assert [caller.began for caller in callers] == [30.0, 30.0, 40.0]


async def test_a_pause_refuses_who_cannot_wait_for_its_end(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with holding(slots) as give_back, trio.open_nursery() as nursery:
        [before] = await queue_up(nursery, slots, "a")
        slots.pause(100.0, PauseCause.RETRY_AFTER)
        [after] = await queue_up(nursery, slots, "a")
        for caller in (before, after):
            assert caller.refused is not None
            problem = caller.refused.problem
            assert (problem.status, problem.code, problem.retry_after_s) == (503, "identity_paused", 100)
        give_back()
    assert unharmed(slots)


async def test_a_pause_may_end_before_its_time_or_grow(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    slots.pause(30.0, PauseCause.OPERATOR)
    async with trio.open_nursery() as nursery:
        first, second = await queue_up(nursery, slots, "ab", hold_s=1.0)
        await trio.sleep(7)
        slots.resume()
        await wait_all_tasks_blocked()
        assert first.began == 7.0
        slots.pause(2.0, PauseCause.OPERATOR)
        slots.pause(20.0, PauseCause.OPERATOR)
    assert second.began == 27.0


async def test_refusals_of_the_upstream_cool_down(autojump_clock: MockClock) -> None:
    slots = Slots(evolve(ONE, cool_down_s=20.0))
    for _ in range(5):
        slots.upstream_refused()
    assert slots.snapshot().pause_cause is PauseCause.COOL_DOWN
    async with slots.hold("a") as slot:
        assert slot.waited_s == 20.0


async def test_the_kill_switch_lets_what_runs_finish(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with trio.open_nursery() as nursery:
        running, waiting = await queue_up(nursery, slots, "ab")
        slots.stop("seat suspended")
        [late] = await queue_up(nursery, slots, "c")
        for caller in (waiting, late):
            assert caller.refused is not None
            problem = caller.refused.problem
            assert (problem.status, problem.code, problem.retry_after_s) == (503, "identity_stopped", None)
        assert not running.over
    assert running.began == 0.0
    slots.start()
    async with slots.hold("a") as slot:
        assert slot.position == 0


# -- the end --------------------------------------------------------------------------------------------------------


async def test_a_shutdown_refuses_who_waits_and_who_comes_and_lets_the_rest_finish(autojump_clock: MockClock) -> None:
    slots = Slots(ONE)
    async with trio.open_nursery() as nursery:
        running, waiting = await queue_up(nursery, slots, "ab")
        slots.drain()
        [late] = await queue_up(nursery, slots, "c")
        for caller in (waiting, late):
            assert caller.refused is not None
            assert (caller.refused.problem.status, caller.refused.problem.code) == (503, "shutting_down")
        assert not running.over
    assert unharmed(slots)
