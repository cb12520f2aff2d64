"""Responses over WebSocket, towards an upstream: a request as a frame, and its frames as the events of a stream.

Source: OpenAI API reference, "WebSocket mode"; wire.md 1.2 (end). The frames are the stream's events, except that an
error is nested there and flat in a stream. The other direction is `capi_core.protocols.responses.websocket`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec
from attrs import field, frozen

from capi_core.errors import Problem, ProtocolError
from capi_core.headers import RESPONSE_HEADERS
from capi_core.members import JSONObject, MembersError, decode
from capi_core.protocols.responses.errors import ErrorBody, decode_error, problem_of
from capi_core.protocols.splice import one_line, without
from capi_core.protocols.writing import json_bytes
from capi_core.sse import encode

if TYPE_CHECKING:
    from capi_core.headers import Headers

__all__ = ["UpstreamFrame", "encode_create", "read_frame"]

_CONNECTIONS_OWN: Final = frozenset({"type", "stream", "stream_id", "generate", "background"})
_COMPLETE: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_TYPE: Final = re.compile(r"[\w.\-]{1,128}", re.ASCII)


class _Head(msgspec.Struct):
    type: str


class _Told(msgspec.Struct):
    """What an error frame may say beside the error. Servers differ in where they put the headers."""

    status: object = None
    sequence_number: object = None
    headers: object = None
    error: object = None


_HEAD: Final = msgspec.json.Decoder(_Head)
_TOLD: Final = msgspec.json.Decoder(_Told)


@frozen
class UpstreamFrame:
    """One frame. `data`: a JSON object, on one line."""

    type: str
    data: bytes = field(repr=False)

    @property
    def is_error(self) -> bool:
        return self.type == "error"

    @property
    def completes(self) -> bool:
        """Whether the answer is whole with it, and the connection free for the next."""
        return self.type in _COMPLETE

    def problem(self) -> tuple[Problem, Headers]:
        """What an error frame tells, nested or flat, and those of its headers that say when to try again."""
        told = self._told()
        status = told.status if isinstance(told.status, int) and 400 <= told.status <= 599 else 200
        problem = decode_error(self.data, status) or problem_of(ErrorBody(), status)
        inner = told.error.get("headers") if isinstance(told.error, dict) else None
        headers = told.headers if isinstance(told.headers, dict) else inner
        if not isinstance(headers, dict):
            return problem, ()
        named = [(str(name).lower().encode(), str(value).encode()) for name, value in headers.items()]
        return problem, tuple(header for header in named if header[0] in RESPONSE_HEADERS)

    def to_event(self) -> bytes:
        """The frame as an event of a stream."""
        return encode(self._flat_error() if self.is_error else self.data, type=self.type.encode())

    def _flat_error(self) -> bytes:
        problem, _ = self.problem()
        event = {"type": "error", "code": problem.code, "message": problem.message, "param": problem.param}
        number = self._told().sequence_number
        return json_bytes({**event, "sequence_number": number} if isinstance(number, int) else event)

    def _told(self) -> _Told:
        try:
            told, _ = decode(_TOLD, self.data)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return _Told()
        return told


def encode_create(body: bytes) -> str | None:
    """The body of an HTTP request as `response.create`; `None` for one that a connection cannot do.

    That is one that does not stream, one for the background, and what is no JSON object.
    """
    try:
        document = JSONObject(body)
    except MembersError:
        return None
    if document.get("stream") != b"true" or document.get("background") == b"true":
        return None
    rest = without(document, _CONNECTIONS_OWN)
    comma = b"," if set(document.names) - _CONNECTIONS_OWN else b""
    return (b'{"type":"response.create"' + comma + rest[rest.index(b"{") + 1 :]).decode()


def read_frame(message: str | bytes) -> UpstreamFrame:
    """Raises `ProtocolError` (502) for what is no event; it holds nothing of the message."""
    if isinstance(message, bytes):
        raise _broken("is not text")
    try:
        data = message.encode()
        head, _ = decode(_HEAD, data)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise _broken("is not an event") from None
    if not _TYPE.fullmatch(head.type):
        raise _broken("has a type that no event has")
    return UpstreamFrame(head.type, one_line(data))


def _broken(why: str) -> ProtocolError:
    return ProtocolError(f"a frame of the upstream {why}", code="upstream_garbage", status_hint=502)
