"""S6: an upstream's stream that is cut at any byte never ends well for the client, in any protocol."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import pytest
from attrs import frozen

from capi_core.commands import Outcome
from capi_core.conformance import checker_for
from capi_core.protocols.kinds import Protocol
from tests.e2e.door import asked, exchange, fed
from tests.support.playbook import Data, Eof, Head
from tests.support.scale import FULL, tell
from tests.support.streams import answer_events

CHAT, RESPONSES, MESSAGES = Protocol.CHAT, Protocol.RESPONSES, Protocol.MESSAGES
SENTENCES: Final = (
    "Grüße, ",
    "naïve \U0001f600 ",
    "\u2028",
    '"quoted"\n\n',
    "data: [DONE]\n\n",
    "event: message_stop",
    "!",
)
PING: Final = {CHAT: b": ping\n\n", RESPONSES: b": ping\r\n\r\n", MESSAGES: b'event: ping\ndata: {"type":"ping"}\n\n'}


def _unix(event: bytes) -> bytes:
    return event


def _crlf(event: bytes) -> bytes:
    return event.replace(b"\n", b"\r\n")


def _cr(event: bytes) -> bytes:
    return event.replace(b"\n", b"\r")


def _tight(event: bytes) -> bytes:
    return event.replace(b"data: ", b"data:").replace(b"event: ", b"event:")


@frozen
class Recording:
    """An upstream's stream. `told`: where the event that says why the answer ended is complete but for its blank line,
    and where it is complete with it."""

    protocol: Protocol
    style: str
    stream: bytes
    told: tuple[int, int]

    @property
    def name(self) -> str:
        return f"{self.protocol.value}-{self.style}"


def recording(
    protocol: Protocol, style: str, shape: Callable[[bytes], bytes], events: Sequence[bytes], *, lead: bytes = b""
) -> Recording:
    at = len(lead)
    told = (0, 0)
    for event in events:
        shaped = shape(event)
        if any(mark in event for mark in FINISHES[protocol]):
            told = (at + len(shaped.rstrip(b"\r\n")), at + len(shaped))
        at += len(shaped)
    assert told[0]
    return Recording(protocol, style, lead + b"".join(map(shape, events)), told)


FINISHES: Final = {
    CHAT: (b'"finish_reason": "tool_calls"',),
    RESPONSES: (b'"type": "response.completed"',),
    MESSAGES: (b'"type": "message_delta"',),
}


def recordings() -> list[Recording]:
    found = []
    for protocol in Protocol:
        plain = answer_events(protocol)
        pinged = [piece for event in plain for piece in (event, PING[protocol])]
        found += [
            recording(protocol, "plain", _unix, plain),
            recording(protocol, "crlf", _crlf, plain),
            recording(protocol, "cr", _cr, plain),
            recording(protocol, "tight_after_a_bom", _tight, plain, lead="\ufeff".encode()),
            recording(protocol, "pings", _unix, pinged, lead=b": hello\n\n"),
            recording(protocol, "without_usage", _unix, answer_events(protocol, usage=None)),
            recording(protocol, "traps_in_its_words", _unix, answer_events(protocol, words=SENTENCES)),
        ]
    return found


RECORDINGS: Final = recordings()
EVERY: Final = 1 if FULL else 41
"""Prime, so that cuts fall at every place of an event."""


class Refused(msgspec.Struct):
    """An answer that is nothing but an error, in either family's shape."""

    error: dict[str, object]
    type: str | None = None


class FailedResponse(msgspec.Struct):
    status: str
    error: dict[str, object]


class FailedEvent(msgspec.Struct):
    response: FailedResponse


ENDS: Final[dict[Protocol, Callable[[bytes, bytes], bool]]] = {
    CHAT: lambda kind, data: data == b"[DONE]" or b'"finish_reason":"' in data.replace(b" ", b""),
    RESPONSES: lambda kind, data: kind in (b"response.completed", b"response.incomplete"),
    MESSAGES: lambda kind, data: kind in (b"message_delta", b"message_stop"),
}
"""Events that tell a client that its answer is whole, read from the bytes."""


def blocks(stream: bytes) -> list[tuple[bytes, bytes]]:
    """Name and data of each event; fails on a stream that does not end with a blank line."""
    text = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert text.endswith(b"\n\n"), text[-80:]
    found = []
    for block in text.split(b"\n\n"):
        members = dict(line.split(b":", 1) for line in block.split(b"\n") if not line.startswith(b":") and b":" in line)
        if b"data" in members:
            found.append((members.get(b"event", b"").strip(), members[b"data"].strip()))
    return found


def assert_broken(client: Protocol, stream: bytes, where: object) -> None:
    """The stream ends in an error of the client's protocol and says nowhere that the answer is whole."""
    events = blocks(stream)
    assert not [event for event in events if ENDS[client](*event)], where
    kind, data = events[-1]
    match client:
        case Protocol.CHAT:
            assert kind == b"", where
            error = msgspec.json.decode(data, type=Refused).error
        case Protocol.MESSAGES:
            assert kind == b"error", where
            told = msgspec.json.decode(data, type=Refused)
            assert told.type == "error", where
            error = told.error
        case Protocol.RESPONSES if len(events) == 1:  # there is no response yet that could fail
            assert kind == b"error", where
            error = msgspec.json.decode(data, type=dict[str, object])
        case _:
            assert kind == b"response.failed", where
            response = msgspec.json.decode(data, type=FailedEvent).response
            assert response.status == "failed", where
            error = response.error
    assert error["message"], where


def assert_legal(client: Protocol, stream: bytes, where: object) -> None:
    checker = checker_for(client)
    checker.receive_data(stream)
    checker.finish()
    assert [one for one in checker.violations if one.rule != "responses-usage"] == [], where


@pytest.mark.parametrize("client", Protocol)
@pytest.mark.parametrize("recorded", RECORDINGS, ids=lambda one: one.name)
def test_s6_a_stream_cut_at_any_byte_ends_in_an_error(recorded: Recording, client: Protocol) -> None:
    """A status where nothing is out yet, else an event. Only from the event on that says why the answer ended is it
    whole."""
    complete, ended = recorded.told
    own = client is recorded.protocol
    for at in range(0, len(recorded.stream), EVERY):
        machine = exchange(client, recorded.protocol)
        got = fed(machine, asked(client), Head(), *([Data(recorded.stream[:at])] if at else []), Eof())
        outcome = machine.record().outcome
        where = (recorded.name, client, at, got.body[-200:])
        if at < complete:
            assert outcome is Outcome.UPSTREAM_BROKE, where
        if at >= ended:
            assert outcome is Outcome.OK, where
        if got.status != 200:
            assert (outcome, got.status) == (Outcome.UPSTREAM_BROKE, 502), where
            assert msgspec.json.decode(got.body, type=Refused).error["message"], where
        elif outcome is Outcome.OK:
            assert any(ENDS[client](*event) for event in blocks(got.body)), where
        else:
            assert_broken(client, got.body, where)
        if got.status == 200 and not own:  # what a provider's own stream does is passed on
            assert_legal(client, got.body, where)


def test_s6_there_are_twenty_recordings() -> None:
    assert len(RECORDINGS) >= 20
    cuts = sum(len(range(0, len(one.stream), EVERY)) for one in RECORDINGS) * len(Protocol)
    tell(f"S6: {len(RECORDINGS)} streams, to clients of {len(Protocol)} protocols, {cuts} cuts: never a made-up end")
