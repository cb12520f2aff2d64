"""One seat: what it learns of its upstream's answer, and who finds none."""

import pytest
from trio.testing import MockClock

from capi_core.config import LimitsConfig
from capi_core.gate_events import GateLimits, GateState, PauseCause
from capi_trio.seat import NoSeatError, Seat, gate_limits, hold
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


@pytest.mark.parametrize(
    ("status", "identity", "headers", "counted"),
    [
        (429, None, (), True),
        (429, None, ((b"retry-after", b"1"),), False),
        (403, "ann", (), True),
        (403, None, (), False),
        (401, "ann", (), False),
    ],
)
async def test_refusals_are_counted(
    autojump_clock: MockClock,
    status: int,
    identity: str | None,
    headers: tuple[tuple[bytes, bytes], ...],
    counted: bool,
) -> None:
    """Not those that say when to come back; nor the 403 of an upstream with a key: that is one request's own affair."""
    slots = Slots(GateLimits(abuse_refusals=2))
    taken = Seat(TARGET, None, slots=slots, identity=identity, now_s=lambda: 0.0)
    for _ in range(2):
        taken.heard(status, headers)
    assert (slots.snapshot().pause_cause is PauseCause.COOL_DOWN) is counted


@pytest.mark.parametrize(("cap", "refusals"), [(1, 5), (4, 5), (8, 9)])
def test_one_reason_for_all_that_are_in_flight_is_no_abuse(cap: int, refusals: int) -> None:
    limits = gate_limits(cap, LimitsConfig(max_queued_per_identity=7, queue_timeout_s=3))
    assert (limits.cap, limits.abuse_refusals, limits.max_queued, limits.queue_timeout_s) == (cap, refusals, 7, 3)


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
