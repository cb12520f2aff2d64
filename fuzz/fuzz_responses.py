"""Invariant: any bytes pass in whole events or break the stream, the same however they are split.

What a client gets is complete events. With an alias, no response has another model's name; the ids of the response and
of each item stay what they were, and numbers grow: the standard library's `json` is the second opinion. A stream that
ends well had its terminal event. Of the same bytes as a request only the model changes; without ids and carried
reasoning it is JSON still.
The first byte of an input chooses the limit and the alias (its low bits) and the size of the pieces.
"""

import json
from itertools import pairwise

from attrs import frozen

from capi_core.errors import ProtocolError
from capi_core.protocols.responses.passthrough import ResponsesStream
from capi_core.protocols.responses.replay import Replay, encode_passed_request
from capi_core.protocols.responses.row import RESPONSES
from capi_core.protocols.stream import StreamState
from capi_core.sse import SSEDecoder
from capi_core.usage import Usage

__all__ = ["test_one_input"]

TIGHT = 256  # bytes: mutated events fall on both sides of it
DEFAULT = 4 * 1024 * 1024
ALIAS = "an alias"
CODES = {"upstream_truncated", "upstream_garbage", "upstream_event_too_large"}


@frozen
class Run:
    output: bytes
    state: StreamState
    code: str | None
    usage: Usage | None
    error: bytes | None


def run(pieces: list[bytes], limit: int, renames: bool) -> Run:
    stream = ResponsesStream(public_name=ALIAS if renames else None, max_event_bytes=limit)
    output = bytearray()
    for piece in pieces:
        if stream.state is not StreamState.BROKEN:
            output += stream.receive_data(piece)
    if stream.state is not StreamState.BROKEN:
        output += stream.finish()
    code = None if stream.failure is None else stream.failure.code
    return Run(bytes(output), stream.state, code, stream.usage, stream.error)


def objects(stream: bytes) -> list[dict[str, object]]:
    """The events that `json` reads as objects."""
    decoder = SSEDecoder(max_event_bytes=2 * DEFAULT)
    events = decoder.feed(stream) + decoder.finish()
    assert decoder.residue == b"", "half an event was forwarded"
    found = []
    for event in events:
        try:
            members = json.loads((event.data or b"").decode("utf-8", "replace"))
        except (ValueError, RecursionError):  # not JSON, or deeper than this stack allows
            continue
        if isinstance(members, dict):
            found.append(members)
    return found


def check_events(events: list[dict[str, object]], renames: bool) -> None:
    ids = set()
    numbers = []
    for event in events:
        response = event.get("response")
        if isinstance(response, dict):
            ids.add(response.get("id"))
            assert not renames or response.get("model", ALIAS) == ALIAS
        number = event.get("sequence_number")
        if str(event.get("type", "")).startswith("response.") and is_read(event) and isinstance(number, int):
            numbers.append(number)
    assert len(ids - {None}) <= 1
    assert all(before < after for before, after in pairwise(numbers))


def is_read(event: dict[str, object]) -> bool:
    """Whether the members that the machine reads have their types; an event of another shape passes as it is."""
    plain = not isinstance(event.get("sequence_number"), bool) and not isinstance(event.get("output_index"), bool)
    return (
        plain and isinstance(event.get("output_index", 0), int | None) and isinstance(event.get("item_id"), str | None)
    )


def check_request(body: bytes) -> None:
    try:
        request = RESPONSES.read(body)
    except ProtocolError:  # the body is the peer's
        return
    for replay in Replay:
        text = encode_passed_request(request.document, model=request.model, upstream_model="up", replay=replay)
        again = RESPONSES.read(text)
        assert (again.model, again.stream) == ("up", request.stream)
        assert again.document.names == request.document.names
        for name in request.document.names:
            assert name in ("model", "input") or again.document.get(name) == request.document.get(name)


def test_one_input(data: bytes) -> None:
    if not data:
        return
    limit, renames = TIGHT if data[0] & 1 else DEFAULT, bool(data[0] & 2)
    size, stream = 1 + (data[0] >> 2), data[1:]

    whole = run([stream], limit, renames)
    assert run([stream[at : at + 1] for at in range(len(stream))], limit, renames) == whole
    assert run([stream[at : at + size] for at in range(0, len(stream), size)], limit, renames) == whole

    assert (whole.code in CODES) == (whole.state is StreamState.BROKEN)
    assert (whole.error is not None) == (whole.state is StreamState.ERRORED)
    assert whole.state not in (StreamState.OPEN, StreamState.FINISHED)
    check_events(objects(whole.output), renames)
    check_request(stream)
