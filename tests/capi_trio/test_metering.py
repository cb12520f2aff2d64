"""The row of a request says how it went, and nothing that a client typed."""

import attrs
import msgspec
import pytest
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent
from trio.testing import MockClock

from capi_core.commands import Operation, Outcome, Record
from capi_core.config import Config
from capi_core.keys import KeyRecord, Tier
from capi_core.protocols.kinds import Protocol
from capi_core.usage import Usage, UsageSource
from capi_core.usage_events import UsageEvent
from capi_trio.metering import Meter, usage_event
from capi_trio.relay import RelayResult
from capi_trio.request import Call
from tests.support import fakes
from tests.support.fakes import FakeUpstream, Reply

KEY = KeyRecord(id="key_1", hash="", tier=Tier.CLIENT, label="the label", created_at=0, owner="Ann")
RECORD = Record(
    Operation.RESPONSES,
    Outcome.OK,
    200,
    "fast",
    "lab",
    "up-1",
    stream=True,
    usage=Usage(1, 2, 3, 4, 5),
    usage_source=UsageSource.UPSTREAM_FINAL,
    upstream_protocol=Protocol.CHAT,
    losses=2,
    failed_upstreams=("other", "third"),
)


async def receive() -> ASGIReceiveEvent:
    raise AssertionError("nothing is received")


async def send(message: ASGISendEvent) -> None:
    raise AssertionError("nothing is sent")


def call() -> Call:
    client = fakes.client(FakeUpstream(Reply()))
    return Call("req_1", "websocket", None, ((b"user-agent", b"x"),), (), receive, send, client)


async def test_everything_that_is_known_is_in_it() -> None:
    result = RelayResult(RECORD, 12.5, 80.0, None, 3.0, "ann", asked=True)
    event = usage_event(call(), KEY, result, began_ms=1_700_000_000_000)
    assert attrs.asdict(event, recurse=False) == {
        "ts_ms": 1_700_000_000_000,
        "request_id": "req_1",
        "key_id": "key_1",
        "owner": "Ann",
        "identity": "ann",
        "operation": Operation.RESPONSES,
        "transport": "websocket",
        "stream": True,
        "upstream": "lab",
        "upstream_protocol": Protocol.CHAT,
        "model": "fast",
        "upstream_model": "up-1",
        "usage": Usage(1, 2, 3, 4, 5),
        "usage_source": UsageSource.UPSTREAM_FINAL,
        "status": 200,
        "outcome": Outcome.OK,
        "ttft_ms": 12.5,
        "latency_ms": 80.0,
        "queue_ms": 3.0,
        "losses": 2,
        "failed_upstreams": 2,
        "cost_micros": None,
    }


async def test_an_upstream_that_was_not_asked_is_none(autojump_clock: MockClock) -> None:
    """The client left the queue: there was nothing to pay for, and nothing that is not known."""
    gone = attrs.evolve(RECORD, outcome=Outcome.CLIENT_GONE, usage=None, usage_source=UsageSource.NONE)
    event = usage_event(call(), KEY, RelayResult(gone, None, 1.0, None, None, None, asked=False), began_ms=0)
    assert (event.upstream, event.upstream_protocol) == (None, None)


@pytest.mark.parametrize("outcome", Outcome)
async def test_a_refusal_is_no_first_byte(autojump_clock: MockClock, outcome: Outcome) -> None:
    result = RelayResult(attrs.evolve(RECORD, outcome=outcome), 12.5, 80.0, None, None, None, asked=True)
    event = usage_event(call(), KEY, result, began_ms=0)
    assert (event.ttft_ms == 12.5) is (outcome in {Outcome.OK, Outcome.CLIENT_GONE})
    assert "the label" not in repr(event)


# -- what it cost --------------------------------------------------------------------------------------------------

EVENT = UsageEvent(
    ts_ms=0,
    request_id="req_1",
    key_id="key_1",
    operation=Operation.CHAT,
    transport="http",
    stream=False,
    upstream="lab",
    upstream_model="mine-7b",
    usage=Usage(uncached_input=1_000_000, output=500_000),
    usage_source=UsageSource.UPSTREAM_FINAL,
    outcome=Outcome.OK,
    latency_ms=1.0,
)


def config(**members: object) -> Config:
    return msgspec.convert(members, Config)


def test_each_row_has_its_cost_at_the_prices_of_the_moment() -> None:
    noted: list[UsageEvent] = []
    meter = Meter(config(prices={"mine-*": {"input": 2, "output": 10}}), noted.append)
    meter.note(EVENT, named=True)
    meter.set_config(config(prices={"mine-7b": {"input": 1, "output": 0}}))
    meter.note(EVENT, named=True)
    assert [event.cost_micros for event in noted] == [7_000_000, 1_000_000]


def test_what_nobody_knows_costs_nobody_knows() -> None:
    """An unpriced model, no usage, no model: never 0."""
    noted: list[UsageEvent] = []
    meter = Meter(config(), noted.append)
    for event in (EVENT, attrs.evolve(EVENT, usage=None), attrs.evolve(EVENT, upstream_model=None)):
        meter.note(event, named=True)
    assert [event.cost_micros for event in noted] == [None, None, None]


def test_switched_off_nothing_is_noted() -> None:
    noted: list[UsageEvent] = []
    meter = Meter(config(features={"telemetry": False}), noted.append)
    meter.note(EVENT, named=True)
    meter.set_config(config())
    meter.note(EVENT, named=True)
    assert len(noted) == 1


# -- what it is called ---------------------------------------------------------------------------------------------


def test_a_model_has_a_name_of_the_gateways_own() -> None:
    """An alias, as long as there is one, or the upstream's name; no other spelling, nor one that the default served."""
    noted: list[UsageEvent] = []
    meter = Meter(config(models={"fast": {"upstream": "mine-7b"}}), noted.append)
    for name in ("fast", "mine-7b", "Mine-7B[my password]", None):
        meter.note(attrs.evolve(EVENT, model=name), named=True)
    meter.set_config(config())
    meter.note(attrs.evolve(EVENT, model="fast"), named=True)
    assert [event.model for event in noted] == ["fast", "mine-7b", "mine-7b", None, "mine-7b"]


def test_a_name_that_a_client_made_up_is_priced_and_not_kept() -> None:
    noted: list[UsageEvent] = []
    meter = Meter(config(prices={"mine-*": {"input": 2, "output": 10}}), noted.append)
    told = meter.note(EVENT, named=False)
    assert noted == [told]
    assert (told.model, told.upstream_model, told.cost_micros) == (None, None, 7_000_000)


def test_a_plan_that_bills_requests_needs_no_tokens() -> None:
    noted: list[UsageEvent] = []
    meter = Meter(config(prices={"mine-7b": {"request": 0.04}}), noted.append)
    meter.note(attrs.evolve(EVENT, usage=None), named=True)
    meter.note(attrs.evolve(EVENT, usage=None, outcome=Outcome.UPSTREAM_ERROR), named=True)
    meter.note(attrs.evolve(EVENT, usage=None, operation=Operation.COUNT_TOKENS), named=True)
    assert [event.cost_micros for event in noted] == [40_000, None, None]
