"""A seat as commands show it: its token, its gate and its use in plain values, and what the operator can do."""

import random
from contextlib import ExitStack

import attrs
import msgspec
import pytest

from capi_core.fanout import MAX_DISTINCT, Distinct, FanoutReport, FanoutThresholds
from capi_core.gate_events import GateLimits, GateSnapshot, GateState, PauseCause
from capi_core.github import TokenProblem
from capi_trio.access import ANONYMOUS
from capi_trio.fanout import FanoutWatch
from capi_trio.github.tokens import TokenState, TokenStatus
from capi_trio.seat_status import FanoutHour, SeatStatus, SeatStatuses

NOW_MS = 1_800_014_400_000
"""An hour begins."""
LINKED = TokenState(TokenStatus.LINKED, expires_at=1_800_016_000.5, sku="demo_seat")
GATE = GateSnapshot(
    state=GateState.OPEN,
    pause_cause=None,
    pause_left_s=0.0,
    note=None,
    limits=GateLimits(cap=4),
    in_flight={"k1": 2, "k2": 1},
    queued={"k1": 5, "k3": 2},
    peak_in_flight=4,
    slot_s=1.0,
    issued=0,
    granted=0,
    released=0,
    cancelled=0,
    refused={},
    repeated=0,
)


def statuses(token: TokenState | None, gate: GateSnapshot = GATE) -> SeatStatuses:
    """Of one identity, `seat`."""
    dice = random.Random(0)
    watch = FanoutWatch(lambda: (), now_ms=lambda: NOW_MS, random_bytes=dice.randbytes)
    return SeatStatuses(lambda: {"seat": (token, gate)}, watch, lambda: NOW_MS)


def status(token: TokenState | None, gate: GateSnapshot = GATE) -> SeatStatus:
    one = statuses(token, gate).one("seat")
    assert one is not None
    assert msgspec.json.decode(msgspec.json.encode(one), type=SeatStatus) == one
    return one


def test_a_seat_that_works() -> None:
    assert status(LINKED) == SeatStatus(
        token="linked",
        token_problem=None,
        token_expires_at=1_800_016_000_500,
        token_retry_at=None,
        sku="demo_seat",
        gate="open",
        pause_cause=None,
        paused_until=None,
        in_flight=3,
        queued=7,
        cap=4,
        peak_in_flight=4,
        next_steps=[],
        fanout=[],
    )


def test_a_token_that_is_refused_says_why_and_what_to_do() -> None:
    refused = status(TokenState(TokenStatus.REFUSED, TokenProblem.NO_SUBSCRIPTION, retry_at=1_800_015_300.0))
    assert (refused.token, refused.token_problem) == ("refused", "no_subscription")
    assert refused.token_retry_at == 1_800_015_300_000
    assert refused.next_steps == [TokenProblem.NO_SUBSCRIPTION.next_step]


def test_an_identity_whose_token_is_not_kept_has_none() -> None:
    stopped = status(None, attrs.evolve(GATE, state=GateState.STOPPED, note="abuse"))
    assert (stopped.token, stopped.token_expires_at, stopped.gate) == ("none", None, "stopped")


@pytest.mark.parametrize(
    ("cause", "until"),
    [
        (PauseCause.RETRY_AFTER, NOW_MS + 12_500),
        (PauseCause.COOL_DOWN, NOW_MS + 12_500),
        (PauseCause.OPERATOR, None),
    ],
)
def test_a_pause_says_why_and_until_when(cause: PauseCause, until: int | None) -> None:
    """The operator's own is until they end it, although the gate is told of it bit by bit."""
    paused = status(LINKED, attrs.evolve(GATE, state=GateState.PAUSED, pause_cause=cause, pause_left_s=12.5))
    assert (paused.gate, paused.pause_cause, paused.paused_until) == ("paused", cause.value, until)


def test_the_hours_are_those_of_the_one_that_is_shown() -> None:
    found = statuses(LINKED)
    with ExitStack() as stack:
        for number in range(2):
            rider = attrs.evolve(ANONYMOUS, id=f"k{number}", owner="Ann")
            stack.enter_context(found.fanout.riding("seat", rider, "192.0.2.1"))
        stack.enter_context(found.fanout.riding("other", ANONYMOUS, None))
    one = found.one("seat")
    assert one is not None
    assert one.fanout == [
        FanoutHour(hour_at=NOW_MS, owners=1, keys=2, addresses=1, uncounted=[], peak_in_flight=2, requests=2)
    ]
    assert found.all()["seat"].fanout == []
    assert found.one("other") is None, "no upstream uses it"


def test_what_is_too_much_use_is_among_the_next_steps() -> None:
    found = statuses(TokenState(TokenStatus.FAILING, TokenProblem.UNREACHABLE))
    found.fanout.set_thresholds(FanoutThresholds(keys=1))
    for name in ("seat", "other"):
        for number in range(2):
            with found.fanout.riding(name, attrs.evolve(ANONYMOUS, id=f"k{number}"), None):
                pass
    first, second = found.all()["seat"].next_steps
    assert first == TokenProblem.UNREACHABLE.next_step
    assert second.startswith("the identity seat was used within one hour by 2 keys")


def test_more_than_can_be_counted_is_told_as_that() -> None:
    many = FanoutReport(
        identity="seat",
        hour_ms=NOW_MS,
        owners=Distinct(1),
        keys=Distinct(MAX_DISTINCT, exact=False),
        addresses=Distinct(MAX_DISTINCT),
        peak_in_flight=9,
        requests=9000,
    )
    hour = FanoutHour.of(many)
    assert (hour.owners, hour.keys, hour.addresses) == (1, 1024, 1024)
    assert hour.uncounted == ["keys"]
