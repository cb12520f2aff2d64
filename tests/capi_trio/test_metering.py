"""The row of a request says how it went, and nothing that a client typed."""

import attrs
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent

from capi_core.commands import Operation, Outcome, Record
from capi_core.keys import KeyRecord, Tier
from capi_core.protocols.kinds import Protocol
from capi_core.usage import Usage, UsageSource
from capi_trio.metering import usage_event
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
    result = RelayResult(RECORD, 12.5, 80.0, None, 3.0, "ann")
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


async def test_a_name_that_leads_nowhere_is_not_kept() -> None:
    refused = attrs.evolve(RECORD, model="my password", upstream=None, upstream_model=None, usage=None)
    result = RelayResult(refused, None, 1.0, None, None, None)
    event = usage_event(call(), KEY, result, began_ms=0)
    assert (event.model, event.upstream_model, event.usage) == (None, None, None)
    assert "password" not in repr(event)
    assert "the label" not in repr(event)
