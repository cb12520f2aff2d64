"""Deltas in, a Responses stream out, event by event as the strictest official SDKs want it.

Source: OpenAI API reference, "Streaming events"; wire.md 1.2, 1.6, 1.7.

Every id is made of the request's, so that it is unique and the same in all events. Each block becomes an item with its
own `output_index`, so blocks that overlap need no buffer. The text of an answer is held until its end, as
`response.completed` repeats all of it: memory grows with the answer, twice its size at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.deltas import (
    Annotated,
    Annotation,
    AnswerDelta,
    BlockKind,
    BlockStart,
    BlockStop,
    Delta,
    End,
    Failed,
    Finish,
    FinishReason,
    Ping,
    Signed,
    Start,
    UsageReport,
)
from capi_core.errors import LocalError
from capi_core.members import decode
from capi_core.protocols.kinds import Protocol
from capi_core.protocols.responses.errors import response_code
from capi_core.protocols.responses.output_items import OpenItem
from capi_core.protocols.responses.response_object import INCOMPLETE, ResponseObject
from capi_core.protocols.splice import one_line
from capi_core.protocols.writing import json_bytes, json_text
from capi_core.sse import KEEP_ALIVE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capi_core.conversation import Opaque, Signature
    from capi_core.fidelity import Ledger
    from capi_core.protocols.codec import Envelope
    from capi_core.usage import Usage

__all__ = ["ResponsesEncoder"]


class _Place(msgspec.Struct):
    start_index: int | None = None
    end_index: int | None = None


class _ChatCitation(msgspec.Struct):
    url_citation: _Place | None = None


_CITATION: Final = msgspec.json.Decoder(_ChatCitation)
_LOSSY: Final = {
    FinishReason.STOP_SEQUENCE: "Responses does not say that a stop sequence ended the answer",
    FinishReason.PAUSE: "Responses has no pause: the answer looks complete",
    FinishReason.CONTEXT_FULL: "Responses says max_output_tokens for a full context too",
}


class ResponsesEncoder:
    """A `StreamEncoder` for one client's stream. `response`: the whole response, raw JSON, once it has ended."""

    def __init__(self, envelope: Envelope, ledger: Ledger) -> None:
        self.response: bytes | None = None
        self._object = ResponseObject(envelope)
        self._request_id = envelope.request_id
        self._ledger = ledger
        self._sequence = 0
        self._started = False
        self._items: dict[int, OpenItem] = {}
        self._places: dict[int, int] = {}
        """The output_index of each block that has one."""
        self._signatures: dict[int, Signature] = {}
        self._done: dict[int, bytes] = {}
        """The done items by output_index."""
        self._usage: Usage | None = None
        self._finish: Finish | None = None

    def encode(self, deltas: Iterable[AnswerDelta]) -> bytes:
        """The bytes for these deltas. Raises `LocalError` when they break the rules of a delta stream."""
        out: list[bytes] = []
        for delta in deltas:
            if self.response is not None:
                break
            self._encode(delta, out)
        return b"".join(out)

    def _text(self, delta: Delta, out: list[bytes]) -> None:
        item = self._item(delta.index)
        if not delta.text:
            return
        if not item.texts and item.kind is BlockKind.REASONING:
            self._events(item.part_added(), out)
        item.texts.append(delta.text)
        out.append(b"%b%b%b%d}\n\n" % (item.head, json_text(delta.text), item.tail, self._sequence))
        self._sequence += 1

    def _encode(self, delta: AnswerDelta, out: list[bytes]) -> None:
        match delta:
            case Delta():  # first, as most are
                self._text(delta, out)
            case Start():
                self._start(delta, out)
            case BlockStart():
                self._open(delta, out)
            case BlockStop():
                self._stop(delta.index, out)
            case Signed():
                self._signatures[delta.index] = delta.signature
            case Annotated():
                self._annotate(delta, out)
            case UsageReport():
                self._usage = delta.usage
            case Finish():
                self._finish = delta
            case Ping():
                out.append(KEEP_ALIVE)
            case End():
                self._end(out)
            case _:  # Failed, the only one left
                self._fail(delta, out)

    def _item(self, index: int) -> OpenItem:
        item = self._items.get(index)
        if item is None:
            raise LocalError(f"there is no open block {index}")
        return item

    def _events(self, events: Iterable[tuple[bytes, bytes]], out: list[bytes]) -> None:
        for kind, members in events:
            form = b'event: %b\ndata: {"type":"%b",%b"sequence_number":%d}\n\n'
            out.append(form % (kind, kind, members, self._sequence))
            self._sequence += 1

    def _lifecycle(self, kind: bytes, response: bytes, out: list[bytes]) -> None:
        self._events([(kind, b'"response":%b,' % response)], out)

    def _start(self, start: Start, out: list[bytes]) -> None:
        self._started = True
        if start.created_s is not None:
            self._object.created_s = start.created_s
        response = self._object.text(b"in_progress")
        self._lifecycle(b"response.created", response, out)
        self._lifecycle(b"response.in_progress", response, out)

    def _open(self, start: BlockStart, out: list[bytes]) -> None:
        place = len(self._places)
        if start.opaque is not None:
            self._pass_opaque(start, start.opaque, place, out)
            return
        self._places[start.index] = place
        item = self._items[start.index] = OpenItem(start, self._request_id, place)
        self._events(item.added(), out)

    def _pass_opaque(self, start: BlockStart, opaque: Opaque, place: int, out: list[bytes]) -> None:
        """An item of Responses' own is told whole; another protocol's is nothing that a client could read."""
        if opaque.protocol is not Protocol.RESPONSES:
            self._ledger.dropped(opaque.at or "$.output", "a part of the answer that only its own protocol knows")
            return
        self._places[start.index] = place
        item = self._done[place] = one_line(opaque.raw)
        members = b'"output_index":%d,"item":%b,' % (place, item)
        self._events([(b"response.output_item.added", members), (b"response.output_item.done", members)], out)

    def _annotate(self, delta: Annotated, out: list[bytes]) -> None:
        item = self._item(delta.index)
        raw = _citation(delta.annotation, sum(map(len, item.texts)))
        if raw is None:
            self._ledger.dropped("$.output", "a citation that Responses has no form for")
        else:
            self._events([item.annotated(raw)], out)

    def _stop(self, index: int, out: list[bytes]) -> None:
        item = self._items.get(index)
        if item is None:  # an opaque block, told whole or left out
            return
        if item.kind is BlockKind.FUNCTION_CALL and not item.texts:
            self._text(Delta(index, "{}"), out)  # clients parse what they get: no arguments are an empty object
        del self._items[index]
        events, whole = item.done(self._signatures.pop(index, None))
        self._done[self._places[index]] = whole
        self._events(events, out)

    def _output(self) -> list[bytes]:
        return [item for _, item in sorted(self._done.items())]

    def _end(self, out: list[bytes]) -> None:
        if self._finish is None or self._items:
            raise LocalError("an answer ends after its Finish and with no block open")
        reason = self._finish.reason
        if reason in _LOSSY:
            self._ledger.dropped("$.finish_reason", _LOSSY[reason])
        incomplete = INCOMPLETE.get(reason)
        status = b"completed" if incomplete is None else b"incomplete"
        self.response = self._object.text(status, self._output(), usage=self._usage, incomplete=incomplete)
        self._lifecycle(b"response." + status, self.response, out)

    def _fail(self, failed: Failed, out: list[bytes]) -> None:
        if not self._started:  # openai-python wants `response.created` before anything else
            self._start(Start(), out)
        problem = failed.problem
        error = json_bytes({"code": response_code(problem, upstream=failed.upstream), "message": problem.message})
        self.response = self._object.text(b"failed", self._output(), usage=self._usage, error=error)
        self._lifecycle(b"response.failed", self.response, out)


def _citation(annotation: Annotation, length: int) -> bytes | None:
    """The annotation in the shape of Responses; `None` when it is another protocol's and cites no page.

    `length`: characters of the text so far; where the citing text stands, unless it says so itself.
    """
    if annotation.protocol is Protocol.RESPONSES:
        return one_line(annotation.raw)
    if annotation.url is None:
        return None
    place = None
    if annotation.protocol is Protocol.CHAT:
        try:
            place = decode(_CITATION, annotation.raw)[0].url_citation
        except msgspec.DecodeError:
            place = None
    place = place or _Place()
    cited = {
        "type": "url_citation",
        "url": annotation.url,
        "title": annotation.title or annotation.url,
        "start_index": length if place.start_index is None else place.start_index,
        "end_index": length if place.end_index is None else place.end_index,
    }
    return json_bytes(cited)
