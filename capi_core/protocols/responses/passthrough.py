"""A Responses stream, passed through: event by event, edited only where ids, the model's name or a number must change.

Source: OpenAI API reference, "Streaming events"; wire.md 0.5, 1.2, 1.7, 1.8.

Theory of operation. Each event is looked at once, by a typed decode of the members that matter, and forwarded as it
came unless one of these is wrong:

    response.id         the first one is the response's id for good; openai-python raises when it changes
    item id             the one of `response.output_item.added` (or the first one seen) is the item's for good, per
                        `output_index`, in `item.id`, in `item_id` and in `response.output`; Copilot rotates all of them
    response.model      the client's name for the model
    sequence_number     must grow; one that does not, or is missing, becomes the next
    text                that comes only whole, in its event `.done`, is said in one delta before that

The states: OPEN until a terminal event; `response.completed` and `response.incomplete` make it DONE, `response.failed`,
`response.cancelled` and `error` make it ERRORED. There is no FINISHED: openai-python drops a stream without its
terminal event, so one that is cut after its last item is BROKEN, and `fail` ends it with `response.failed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec
from typing_extensions import override

from capi_core.errors import Problem
from capi_core.members import JSONObject, MembersError, decode
from capi_core.protocols.openai import json_string, says_error
from capi_core.protocols.passage import DONE_MARK, PassedStream, with_data
from capi_core.protocols.quiet import Quiet, QuietReader
from capi_core.protocols.reading import is_json
from capi_core.protocols.responses.errors import decode_error, encode_error, response_code
from capi_core.protocols.responses.spoken import PartKey, Spoken
from capi_core.protocols.splice import edit_items, one_line
from capi_core.protocols.stream import StreamState
from capi_core.protocols.writing import json_bytes
from capi_core.sse import Event, encode
from capi_core.usage import responses_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


class _QuietDelta(Quiet, gc=False, kw_only=True):
    """A delta that goes out as it comes, if its item and its number are right."""

    sequence_number: int
    output_index: int
    item_id: str
    content_index: int = 0
    summary_index: int = 0
    item: msgspec.UnsetType = msgspec.UNSET
    response: msgspec.UnsetType = msgspec.UNSET


class _TextDelta(_QuietDelta, gc=False, kw_only=True):
    type: Literal["response.output_text.delta"]


class _ArgumentsDelta(_QuietDelta, gc=False, kw_only=True):
    type: Literal["response.function_call_arguments.delta"]


class _SummaryDelta(_QuietDelta, gc=False, kw_only=True):
    type: Literal["response.reasoning_summary_text.delta"]


class _ReasoningDelta(_QuietDelta, gc=False, kw_only=True):
    type: Literal["response.reasoning_text.delta"]


_EVENT: Final = msgspec.json.Decoder(_Event)
_ITEM: Final = msgspec.json.Decoder(_Item | None)
_RESPONSE: Final = msgspec.json.Decoder(_Response)

_TERMINAL: Final = {
    "response.completed": StreamState.DONE,
    "response.incomplete": StreamState.DONE,
    "response.failed": StreamState.ERRORED,
    "response.cancelled": StreamState.ERRORED,
    "error": StreamState.ERRORED,
}
_EVENT_LINE: Final = b"event: "
_QUIET: Final[Mapping[bytes, QuietReader[_QuietDelta]]] = {
    name: QuietReader(shape, event=name)
    for name, shape in (
        (b"response.output_text.delta", _TextDelta),
        (b"response.function_call_arguments.delta", _ArgumentsDelta),
        (b"response.reasoning_summary_text.delta", _SummaryDelta),
        (b"response.reasoning_text.delta", _ReasoningDelta),
    )
}
_NULL: Final = b"null"
_MOST_ITEMS: Final = 1024
"""Ids are held for so many items; no answer has a tenth of that. What comes after passes with the ids it has."""
_MOST_ID: Final = 4096
_MOST_BITS: Final = 53
"""Of a number: what JavaScript counts exactly."""


class ResponsesStream(PassedStream):
    """An upstream's event stream in, the client's event stream out; a `StreamMachine`.

    `public_name` replaces `response.model`, `None` leaves it. `max_event_bytes` bounds what is held back while an event
    is incomplete.
    """

    def __init__(self, *, public_name: str | None = None, max_event_bytes: int = 4 * 1024 * 1024) -> None:
        super().__init__(max_event_bytes=max_event_bytes)
        self._model = None if public_name is None else json_string(public_name)
        self._response_id: str | None = None
        self._response: bytes | None = None
        """The response as the client knows it from the last lifecycle event: what `fail` ends the stream with."""
        self._anchors: dict[int, _Anchor] = {}
        self._sequence = -1
        self._spoken = Spoken()
        self._speaking: tuple[bytes, int, int, int] | None = None
        """The text of the last quiet run, which is in `_spoken`: looking it up there costs as much as all the rest."""

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

    @override
    def _pass_quiet(self, run: bytes) -> bytes | None:
        """A run of deltas of one item whose id is known, numbered one after the other."""
        kind = run[len(_EVENT_LINE) : run.find(b"\n")]
        reader = _QUIET.get(kind)
        deltas = None if reader is None else reader.read(run)
        if deltas is None:
            return None
        first, number = deltas[0], self._sequence
        index, content, summary = first.output_index, first.content_index, first.summary_index
        anchor = self._anchors.get(index)
        if anchor is None or (number + len(deltas)).bit_length() > _MOST_BITS:
            return None
        text = (kind, index, content, summary)
        if text != self._speaking:
            if PartKey(kind.decode().removesuffix(".delta"), index, content, summary) not in self._spoken:
                return None
            self._speaking = text
        for delta in deltas:
            number += 1
            if delta.sequence_number != number or delta.item_id != anchor.id or delta.output_index != index:
                return None
            if delta.content_index != content or delta.summary_index != summary:
                return None
        self._sequence = number
        self.chunks += len(deltas)
        return run

    @override
    def _forward_data(self, event: Event, data: bytes) -> bytes:
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
        missing = b""
        if found.response:
            self._edit_response(found, changes)
        elif found.output_index is not None:
            self._edit_item(found.output_index, found, changes)
            missing = self._missing_delta(found.output_index, found, data)
        if found.type.startswith("response.") or found.type == "error":
            number = self._number(found.sequence_number)
            if number != found.sequence_number:
                changes["sequence_number"] = b"%d" % number
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
        return missing + with_data(event, data, text)

    def _missing_delta(self, index: int, found: _Event, data: bytes) -> bytes:
        """The delta of a text that comes only whole: its event goes before that of the whole."""
        anchor = self._anchors.get(index)
        delta = self._spoken.note(found.type, data, found.item_id if anchor is None else anchor.id)
        if delta is None:
            return b""
        # It takes the number of the event before which it goes; that one gets the next.
        numbered = JSONObject(delta).edit({"sequence_number": b"%d" % self._number(found.sequence_number)})
        self.chunks += 1
        return encode(numbered, type=found.type.removesuffix(".done").encode() + b".delta")

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

    def _number(self, given: int | None) -> int:
        """The number of the next event, which came with the one that is given."""
        if given is None or given <= self._sequence or given.bit_length() > _MOST_BITS:
            given = self._sequence + 1
        self._sequence = given
        return given

    def _forward_unreadable(self, event: Event, data: bytes) -> bytes:
        """Data that is no event of Responses: the end mark of Chat, nothing at all, an unknown shape, or garbage."""
        text = data.strip()
        if not text or text == DONE_MARK:  # an event with empty data makes both official SDKs fail (wire.md 1.7)
            return b""
        return event.raw if _is_foreign(text) else self._garbage()

    @override
    def _garbage(self) -> bytes:
        return self._break("upstream_garbage", "the upstream sent something that is not a Responses stream")


def _as_answer(data: bytes) -> bytes:
    """An event that tells of an error, in the shape of an HTTP answer: the event `error` is flat (wire.md 1.2)."""
    problem = decode_error(data, 200)
    return data if problem is None else encode_error(problem)


def _is_foreign(text: bytes) -> bool:
    """Whether it is JSON that names no response and no item: a reader may know it, and it has nothing to change."""
    return is_json(text) and not any(name in text for name in (b'"response"', b'"item', b"\\u"))
