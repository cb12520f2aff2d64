"""One seat: what it learns of its upstream's answer, and who finds none."""

import pytest
from trio.testing import MockClock

from capi_core.gate_events import GateLimits, GateState
from capi_trio.seat import NoSeatError, Seat, hold
from capi_trio.slots import Slots
from capi_trio.upstream import UpstreamTarget

TARGET = UpstreamTarget("up", "http://up.test/v1")


def seat(slots: Slots | None) -> Seat:
    return Seat(TARGET, None, slots=slots, now_s=lambda: 0.0)


@pytest.mark.parametrize(
    ("status", "headers", "state"),
    [
        (429, ((b"retry-after", b"20"),), GateState.PAUSED),
        (503, ((b"retry-after", b"20"),), GateState.PAUSED),
        (529, ((b"retry-after", b"20"),), GateState.PAUSED),
        (503, ((b"retry-after", b"0"),), GateState.OPEN),
        (503, (), GateState.OPEN),
        (200, ((b"retry-after", b"20"),), GateState.OPEN),
    ],
)
async def test_what_an_upstream_says_of_itself_is_for_all(
    autojump_clock: MockClock, status: int, headers: tuple[tuple[bytes, bytes], ...], state: GateState
) -> None:
    slots = Slots(GateLimits())
    seat(slots).heard(status, headers)
    assert slots.snapshot().state is state


async def test_refusals_are_counted(autojump_clock: MockClock) -> None:
    slots = Slots(GateLimits(abuse_refusals=2))
    seat(slots).heard(403, ())
    assert slots.snapshot().state is GateState.OPEN
    seat(slots).heard(429, ())
    assert slots.snapshot().state is GateState.PAUSED


async def test_without_a_gate_there_is_nobody_to_tell(autojump_clock: MockClock) -> None:
    free = seat(None)
    free.heard(429, ((b"retry-after", b"20"),))
    assert not free.may_renew()
    await free.renew()
    assert free.target is TARGET


async def test_who_gets_no_slot_is_told_why(autojump_clock: MockClock) -> None:
    slots = Slots(GateLimits(cap=1, max_queued=0))
    async with hold(slots, "a") as slot:
        assert slot.position == 0
        with pytest.raises(NoSeatError) as refused:
            async with hold(slots, "b"):
                raise AssertionError("there was room")
    assert (refused.value.problem.status, refused.value.problem.code) == (429, "queue_full")
    assert slots.in_flight == 0
