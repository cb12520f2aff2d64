"""What a client of Responses over WebSocket may refer to: the conversations of its own connection.

Codex opens with a request that generates nothing (`generate: false`), and then sends only what is new, with
`previous_response_id` (wire.md 0.4). Upstreams get whole conversations, so each request is expanded here before it is
routed. Source: OpenAI API reference, "Conversation state"; wire.md 1.2.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec

from capi_core.errors import ProtocolError
from capi_core.members import JSONObject
from capi_core.protocols.codec import Envelope
from capi_core.protocols.openai import decode_string
from capi_core.protocols.reading import read_json
from capi_core.protocols.responses.response_object import ResponseObject
from capi_core.protocols.splice import without
from capi_core.protocols.writing import json_bytes
from capi_core.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ResponseHistory"]

_PREVIOUS: Final = "previous_response_id"
_NULL: Final = b"null"
_NOTHING: Final = Usage(uncached_input=0, cache_read=0, output=0, reasoning=0)


class _Response(msgspec.Struct):
    output: list[msgspec.Raw] | None = None


_INPUT: Final = msgspec.json.Decoder(str | list[msgspec.Raw] | None)
_RESPONSE: Final = msgspec.json.Decoder(_Response)


class ResponseHistory:
    """The last responses of one connection, with the conversations that led to them.

    `max_responses` and `max_bytes` (of JSON text) bound what is held; the oldest go first. A conversation that is
    larger alone is not remembered.
    """

    def __init__(self, *, max_responses: int = 16, max_bytes: int = 16 * 1024 * 1024) -> None:
        self._most = max_responses
        self._most_bytes = max_bytes
        self._held = 0
        self._conversations: OrderedDict[str, bytes] = OrderedDict()
        """By response id: the items so far, joined by commas."""

    def remember(self, response_id: str, document: JSONObject, response: bytes) -> None:
        """A request was answered: `document` is the request as expanded, `response` the whole response object.

        One that continues what only the upstream keeps is not: nobody here has the whole of it. Raises `ProtocolError`
        when one of them is not what it should be.
        """
        if _previous(document) is not None:
            return
        output = read_json(_RESPONSE, response, "$.response", status=502).output
        items = b",".join(part for part in (_items(document), _joined(output or [])) if part)
        self._forget(response_id)
        self._conversations[response_id] = items
        self._held += len(items)
        while self._conversations and (len(self._conversations) > self._most or self._held > self._most_bytes):
            self._forget(next(iter(self._conversations)))

    def expand(self, document: JSONObject) -> JSONObject:
        """The request with the whole conversation as its `input`, and without `previous_response_id`.

        One that refers to nothing is returned as it is; so is one that refers to a response which this connection does
        not know, or no longer, but the upstream may: what it stores is for it to find. Raises `ProtocolError` (400)
        with the code `previous_response_not_found` when nothing is stored (`store: false`).
        """
        previous = _previous(document)
        if previous is None:
            return document
        before = self._conversations.get(decode_string(previous) or "")
        if before is None and document.get("store") != b"false":
            return document
        if before is None:
            raise _not_found()
        items = b",".join(part for part in (before, _items(document)) if part)
        return JSONObject(JSONObject(without(document, {_PREVIOUS})).edit({"input": b"[%b]" % items}))

    def warm_up(self, document: JSONObject, response_id: str, now_s: int) -> list[str]:
        """The events, as JSON texts, that answer an expanded request with `generate: false`; and remembers it.

        No model is asked: the response is complete, empty and free. `now_s`: seconds since epoch. Raises
        `ProtocolError` when the request continues what is not held here: there would be nothing to remember.
        """
        if _previous(document) is not None:
            raise _not_found()
        model = decode_string(document.get("model") or _NULL) or ""
        answer = ResponseObject(Envelope(request_id="", model=model, now_s=now_s, request=document))
        answer.id = response_id
        begun = answer.text(b"in_progress")
        done = answer.text(b"completed", usage=_NOTHING)
        self.remember(response_id, document, done)
        told = ((b"created", begun), (b"in_progress", begun), (b"completed", done))
        form = b'{"type":"response.%b","sequence_number":%d,"response":%b}'
        return [(form % (kind, number, body)).decode("utf-8", "replace") for number, (kind, body) in enumerate(told)]

    def _forget(self, response_id: str) -> None:
        items = self._conversations.pop(response_id, b"")
        self._held -= len(items)


def _not_found() -> ProtocolError:
    text = "this connection has no such previous response: send the whole conversation as `input`"
    return ProtocolError(text, code="previous_response_not_found", param=_PREVIOUS)


def _previous(document: JSONObject) -> bytes | None:
    """The id that a request refers to, as JSON."""
    previous = document.get(_PREVIOUS)
    return None if previous == _NULL else previous


def _items(document: JSONObject) -> bytes:
    """The items of a request's `input`, joined by commas."""
    raw = document.get("input") or _NULL
    given = read_json(_INPUT, raw, "$.input")
    if isinstance(given, str):
        return json_bytes({"type": "message", "role": "user", "content": given})
    return _joined(given or [])


def _joined(items: Iterable[msgspec.Raw]) -> bytes:
    return b",".join(bytes(item) for item in items)
