"""Invariant: any bytes are forwarded in whole events or break the stream, the same however they are split.

What a client gets is complete events; what is left unchanged is a part of the input, byte for byte. With an alias, no
chunk has another name at its top level: the standard library's `json` is the second opinion. A stream that ends well
has finished, has said [DONE] or has told of an error. A broken stream stays broken.
Of the same bytes as a request, only the model and the usage option change.
The first byte of an input chooses limits, alias, swallowing and choices (its low bits) and the size of the pieces.
"""

import json

from attrs import frozen

from capi_core.errors import LocalError, ProtocolError
from capi_core.protocols.chat.passthrough import ChatStream, StreamState, encode_request, read
from capi_core.sse import Event, SSEDecoder
from capi_core.usage import Usage

__all__ = ["test_one_input"]

TIGHT = 64  # bytes: mutated events fall on both sides of it
DEFAULT = 4 * 1024 * 1024
ALIAS = "an alias"
CODES = {"upstream_truncated", "upstream_garbage", "upstream_event_too_large"}


@frozen
class Settings:
    limit: int
    renames: bool
    swallows: bool
    choices: int


@frozen
class Run:
    output: bytes
    state: StreamState
    code: str | None
    usage: Usage | None
    error: bytes | None


def run(pieces: list[bytes], settings: Settings) -> Run:
    stream = ChatStream(
        public_name=ALIAS if settings.renames else None,
        swallow_usage=settings.swallows,
        choices=settings.choices,
        max_event_bytes=settings.limit,
    )
    output = bytearray()
    for piece in pieces:
        if stream.state is not StreamState.BROKEN:
            output += stream.receive_data(piece)
    if stream.state is not StreamState.BROKEN:
        output += stream.finish()
    if stream.state is StreamState.BROKEN:
        check_stays_broken(stream)
    code = None if stream.failure is None else stream.failure.code
    return Run(bytes(output), stream.state, code, stream.usage, stream.error)


def check_stays_broken(stream: ChatStream) -> None:
    try:
        stream.receive_data(b"data: {}\n\n")
    except LocalError:  # what a machine owes to a caller who goes on after the end
        return
    raise AssertionError("a broken stream took bytes")


def events_of(stream: bytes) -> list[Event]:
    decoder = SSEDecoder(max_event_bytes=2 * DEFAULT)
    events = decoder.feed(stream) + decoder.finish()
    assert decoder.residue == b"", "half an event was forwarded"
    return events


def model_of(data: bytes | None) -> object:
    """The top-level `model` as `json` reads it; the alias for what has none or is no object."""
    try:
        found = json.loads((data or b"").decode("utf-8", "replace"), parse_int=str)
    except (ValueError, RecursionError):  # not JSON, or deeper than this stack allows
        return ALIAS
    return found.get("model", ALIAS) if isinstance(found, dict) else ALIAS


def check_request(body: bytes) -> None:
    try:
        request = read(body)
    except ProtocolError:  # the body is the peer's
        return
    assert encode_request(request, upstream_model=request.model, inject_usage=False) == body
    again = read(encode_request(request, upstream_model="up", inject_usage=True))
    assert (again.model, again.asks_usage, again.stream, again.choices) == ("up", True, request.stream, request.choices)
    assert set(request.document.names) | {"stream_options"} == set(again.document.names)
    for name in request.document.names:
        assert name in ("model", "stream_options") or again.document.get(name) == request.document.get(name)


def test_one_input(data: bytes) -> None:
    if not data:
        return
    bits, size, stream = data[0] & 15, 1 + (data[0] >> 4), data[1:]
    settings = Settings(TIGHT if bits & 1 else DEFAULT, bool(bits & 2), bool(bits & 4), 1 + (bits >> 3))

    whole = run([stream], settings)
    assert run([stream[at : at + 1] for at in range(len(stream))], settings) == whole
    assert run([stream[at : at + size] for at in range(0, len(stream), size)], settings) == whole

    assert (whole.code in CODES) == (whole.state is StreamState.BROKEN)
    assert (whole.error is not None) == (whole.state is StreamState.ERRORED)
    assert whole.state is not StreamState.OPEN
    events = events_of(whole.output)
    if settings.renames:
        assert all(model_of(event.data) == ALIAS for event in events)
    check_request(stream)
