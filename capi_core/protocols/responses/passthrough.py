"""A Responses stream, passed through: event by event, edited only where ids, the model's name or a number must change.

Source: OpenAI API reference, "Streaming events"; wire.md 0.5, 1.2, 1.7, 1.8.

Theory of operation. Each event is looked at once, by a typed decode of the members that matter, and forwarded as it
came unless one of these is wrong:

    response.id         the first one is the response's id for good; openai-python raises when it changes
    item id             the one of `response.output_item.added` (or the first one seen) is the item's for good, per
                        `output_index`, in `item.id`, in `item_id` and in `response.output`; Copilot rotates all of them
    response.model      the client's name for the model
    sequence_number     must grow; one that does not, or is missing, becomes the next

The states: OPEN until a terminal event; `response.completed` and `response.incomplete` make it DONE, `response.failed`,
`response.cancelled` and `error` make it ERRORED. There is no FINISHED: openai-python drops a stream without its
terminal event, so one that is cut after its last item is BROKEN, and `fail` ends it with `response.failed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from capi_core.errors import LocalError, Problem, ProtocolError
from capi_core.members import JSONObject, MembersError, decode
from capi_core.protocols.openai import json_string, says_error
from capi_core.protocols.responses.errors import decode_error, encode_error, response_code
from capi_core.protocols.splice import edit_items, one_line
from capi_core.protocols.stream import ENDED, StreamState
from capi_core.protocols.writing import json_bytes
from capi_core.sse import Event, SSEDecoder, SSEError, encode
from capi_core.usage import Usage, responses_usage

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ResponsesStream"]


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    sequence_number: int | None = None
    output_index: int | None = None
    item_id: str | None = None
    item: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Item(msgspec.Struct, gc=False):
    type: str = ""
    id: str | None = None


class _Anchor(NamedTuple):
    """What an item is called for good. `type`: `""` when only events of it were seen, and it not."""

    type: str
    id: str


class _Response(msgspec.Struct):
    id: str | None = None
    model: msgspec.Raw = msgspec.Raw()
    output: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


_EVENT: Final = msgspec.json.Decoder(_Event)
_ITEM: Final = msgspec.json.Decoder(_Item | None)
_RESPONSE: Final = msgspec.json.Decoder(_Response)
_ANY: Final = msgspec.json.Decoder(msgspec.Raw)

_TERMINAL: Final = {
    "response.completed": StreamState.DONE,
    "response.incomplete": StreamState.DONE,
    "response.failed": StreamState.ERRORED,
    "response.cancelled": StreamState.ERRORED,
    "error": StreamState.ERRORED,
}
_DONE: Final = b"[DONE]"
_NULL: Final = b"null"
_MOST_ITEMS: Final = 1024
"""Ids are held for so many items; no answer has a tenth of that. What comes after passes with the ids it has."""
_MOST_ID: Final = 4096
_DATALESS_FIELDS: Final = frozenset({b"", b"event", b"id", b"retry"})


class ResponsesStream:
    """An upstream's event stream in, the client's event stream out; a `StreamMachine`.

    `public_name` replaces `response.model`, `None` leaves it. `max_event_bytes` bounds what is held back while an event
    is incomplete.
    """

    def __init__(self, *, public_name: str | None = None, max_event_bytes: int = 4 * 1024 * 1024) -> None:
        self.state = StreamState.OPEN
        self.usage: Usage | None = None
        self.chunks = 0
        self.failure: ProtocolError | None = None
        self.error: bytes | None = None
        self._decoder = SSEDecoder(max_event_bytes=max_event_bytes)
        self._model = None if public_name is None else json_string(public_name)
        self._response_id: str | None = None
        self._response: bytes | None = None
        """The response as the client knows it from the last lifecycle event: what `fail` ends the stream with."""
        self._anchors: dict[int, _Anchor] = {}
        self._sequence = -1

    def receive_data(self, data: bytes) -> bytes:
        """Takes upstream bytes in any chunking; returns what can go to the client now (possibly nothing).

        A stream that breaks still yields the events before the break. Raises `LocalError` once it is BROKEN.
        """
        if self.state is StreamState.BROKEN:
            raise LocalError("the stream is broken: it takes no more bytes")
        if self.state in ENDED:
            return b""
        try:
            events = self._decoder.feed(data)
        except SSEError:  # `_decoder.failed` tells of it, also when events come before
            events = []
        return self._forward_all(events)

    def finish(self) -> bytes:
        """The upstream ended its response properly. Returns the tail; `state` tells whether this was a legal end.

        An event without its blank line is completed if it holds a whole JSON object, and dropped if not.
        """
        if self.state is StreamState.BROKEN:
            raise LocalError("the stream is broken: it cannot finish")
        if self.state in ENDED:
            return b""
        events = self._decoder.finish(lenient=True)
        if self._decoder.residue and not _is_object(events[-1].data):
            events = events[:-1]
        tail = self._forward_all(events)
        if self.state is StreamState.OPEN:
            self._break("upstream_truncated", "the upstream ended its stream before the answer was complete")
        return tail

    def fail(self, problem: Problem) -> bytes:
        """The last bytes of a stream that cannot go on: `response.failed`, or `error` when no response was begun.

        Nothing when the stream has had its end. Ends the machine.
        """
        over = self.state in (StreamState.DONE, StreamState.ERRORED)
        self.state = StreamState.ERRORED
        if over:
            return b""
        code, number = response_code(problem, upstream=False), self._sequence + 1
        if self._response is None:
            event = {
                "type": "error",
                "code": code,
                "message": problem.message,
                "param": problem.param,
                "sequence_number": number,
            }
            return encode(json_bytes(event), type=b"error")
        body = JSONObject(self._response).edit(
            {"status": b'"failed"', "error": json_bytes({"code": code, "message": problem.message})}
        )
        text = b'{"type":"response.failed","sequence_number":%d,"response":%b}' % (number, one_line(body))
        return encode(text, type=b"response.failed")

    def _forward_all(self, events: list[Event]) -> bytes:
        out = [self._forward(event) for event in events]
        if self._decoder.failed and self.state not in ENDED:
            self._break("upstream_event_too_large", "the upstream sent an event larger than this gateway relays")
        return b"".join(out)

    def _forward(self, event: Event) -> bytes:
        if self.state in ENDED:
            return b""
        data = event.data
        if data is None:
            return self._forward_dataless(event)
        try:
            found, _ = decode(_EVENT, data)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return self._forward_unreadable(event, data)
        try:
            return self._forward_event(event, data, found)
        except (msgspec.DecodeError, MembersError, UnicodeError, RecursionError):
            # An id or a name might stand in it that cannot be changed: better no answer than a wrong one.
            return self._garbage()

    def _forward_event(self, event: Event, data: bytes, found: _Event) -> bytes:
        changes: dict[str, bytes] = {}
        if found.response:
            self._edit_response(found, changes)
        elif found.output_index is not None:
            self._edit_item(found.output_index, found, changes)
        if found.type.startswith("response.") or found.type == "error":
            self._number(found.sequence_number, changes)
        state = _TERMINAL.get(found.type)
        text = JSONObject(data).edit(changes) if changes else data
        if state is not None:
            self.state = state
        elif not found.type and says_error(found.error):  # Chat's error object, as Copilot may send anywhere
            self.state = StreamState.ERRORED
        if self.state is StreamState.ERRORED:
            self.error = data if says_error(found.error) else _as_answer(data)
        else:
            self.chunks += 1
        return _with_data(event, data, text)

    def _edit_response(self, found: _Event, changes: dict[str, bytes]) -> None:
        response = _RESPONSE.decode(found.response)
        edits: dict[str, bytes] = {}
        if self._response_id is None:
            self._response_id = response.id
        elif response.id != self._response_id:
            edits["id"] = json_string(self._response_id)
        if self._model is not None and response.model and bytes(response.model) != self._model:
            edits["model"] = self._model
        given = bytes(response.output)
        if given not in (b"", b"[]", _NULL):
            output = edit_items(given, self._output_editor())
            if output != given:
                edits["output"] = output
        if response.usage and bytes(response.usage) != _NULL:
            self.usage = responses_usage(response.usage) or self.usage
        body = bytes(found.response)
        if edits:
            body = changes["response"] = JSONObject(body).edit(edits)
        if found.type not in _TERMINAL:
            JSONObject(body)  # `fail` edits it: a name that stands twice in it has to show now
            self._response = body

    def _edit_item(self, index: int, found: _Event, changes: dict[str, bytes]) -> None:
        if found.item_id is not None:
            anchor = self._anchor(index, "", found.item_id)
            if anchor != found.item_id:
                changes["item_id"] = json_string(anchor)
        if found.item:
            item = _ITEM.decode(found.item)
            if item is not None and item.id is not None:
                anchor = self._anchor(index, item.type, item.id)
                if anchor != item.id:
                    changes["item"] = JSONObject(bytes(found.item)).edit({"id": json_string(anchor)})

    def _anchor(self, index: int, kind: str, seen: str) -> str:
        """The id of the item at `index`: the first one that was seen there."""
        anchor = self._anchors.get(index)
        if anchor is not None:
            return anchor.id
        if len(self._anchors) < _MOST_ITEMS and len(seen) <= _MOST_ID:
            self._anchors[index] = _Anchor(kind, seen)
        return seen

    def _output_editor(self) -> Callable[[int, bytes], bytes]:
        """For the items of `response.output`. They stand in the order of their `output_index`, but a server may leave
        some out: each is the next one of its type."""
        anchors = iter([anchor for _, anchor in sorted(self._anchors.items())])

        def edit(place: int, text: bytes) -> bytes:
            item, _ = decode(_ITEM, text)
            if item is None or item.id is None:
                return text
            anchor = next((anchor for anchor in anchors if anchor.type in ("", item.type)), None)
            if anchor is None or anchor.id == item.id:
                return text
            return JSONObject(text).edit({"id": json_string(anchor.id)})

        return edit

    def _number(self, number: int | None, changes: dict[str, bytes]) -> None:
        if number is None or number <= self._sequence or number.bit_length() > 53:
            number = self._sequence + 1
            changes["sequence_number"] = b"%d" % number
        self._sequence = number

    def _forward_unreadable(self, event: Event, data: bytes) -> bytes:
        """Data that is no event of Responses: the end mark of Chat, nothing at all, an unknown shape, or garbage."""
        text = data.strip()
        if not text or text == _DONE:  # an event with empty data makes both official SDKs fail (wire.md 1.7)
            return b""
        return event.raw if _is_foreign(text) else self._garbage()

    def _forward_dataless(self, event: Event) -> bytes:
        """Comments and blank lines pass. A lone `event:`, `id:` or `retry:` is dropped: openai-python fails on it."""
        kinds = {line.partition(b":")[0] for line in event.raw.replace(b"\r", b"\n").split(b"\n") if line}
        if kinds <= {b""}:
            return event.raw
        return b"" if kinds <= _DATALESS_FIELDS else self._garbage()

    def _garbage(self) -> bytes:
        self._break("upstream_garbage", "the upstream sent something that is not a Responses stream")
        return b""

    def _break(self, code: str, message: str) -> None:
        self.state = StreamState.BROKEN
        self.failure = ProtocolError(message, code=code, status_hint=502)


def _as_answer(data: bytes) -> bytes:
    """An event that tells of an error, in the shape of an HTTP answer: the event `error` is flat (wire.md 1.2)."""
    problem = decode_error(data, 200)
    return data if problem is None else encode_error(problem)


def _with_data(event: Event, data: bytes, text: bytes) -> bytes:
    """The event with `text` in place of its data."""
    if text == data:
        return event.raw
    if b"\n" in data or event.raw.count(data) != 1:  # spread over several lines, or in a comment as well
        return encode(text, type=event.type.replace(b"\0", b""), id=event.id)
    return event.raw.replace(data, text)


def _is_foreign(text: bytes) -> bool:
    """Whether it is JSON that names no response and no item: a reader may know it, and it has nothing to change."""
    try:
        decode(_ANY, text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False
    return not any(name in text for name in (b'"response"', b'"item', b"\\u"))


def _is_object(data: bytes | None) -> bool:
    text = (data or b"").strip()
    try:
        decode(_ANY, text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False
    return text.startswith(b"{")
