"""Responses over WebSocket: one JSON text per frame, both ways. Only the texts; no sockets.

Source: OpenAI API reference, "WebSocket mode"; wire.md 1.2 (end). The client's `response.create` has the members of the
HTTP request and a few of the connection's own; the server's frames are the events of the stream, except that an error
is nested.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import msgspec
from attrs import field, frozen

from capi_core.errors import Problem, ProtocolError
from capi_core.headers import Headers, client_response_headers
from capi_core.members import JSONObject, MembersError, decode
from capi_core.protocols.openai import decode_string, json_string
from capi_core.protocols.reading import read_json
from capi_core.protocols.responses.errors import ErrorBody, problem_of
from capi_core.protocols.splice import without
from capi_core.protocols.writing import json_bytes
from capi_core.sse import Event, SSEDecoder

__all__ = ["ClientFrame", "FrameEncoder", "FrameError", "encode_error_frame", "in_lane", "read_client_frame"]

_MOST_STREAM_ID: Final = 256


@frozen
class ClientFrame:
    """A `response.create`. `document`: the request in its HTTP form, which streams; `stream_id`: the lane that each
    frame of the answer names; `generate`: false asks for no answer, only to be remembered."""

    document: JSONObject = field(repr=False)
    stream_id: str | None
    generate: bool


class FrameError(ProtocolError):
    """A client's frame cannot be served. `stream_id`: the lane that it named, if it could be read."""

    def __init__(self, problem: Problem, stream_id: str | None) -> None:
        super().__init__(problem.message, code=problem.code, status_hint=problem.status, param=problem.param)
        self.stream_id = stream_id


class _Create(msgspec.Struct):
    type: str
    stream_id: str | None = None
    generate: bool | None = None
    background: bool | None = None


class _Flat(msgspec.Struct):
    type: str | None = None
    message: str | None = None
    code: str | int | None = None
    param: str | None = None
    sequence_number: int | None = None


_CREATE: Final = msgspec.json.Decoder(_Create)
_FLAT: Final = msgspec.json.Decoder(_Flat)
_REFUSED: Final = {
    "response.steer": "an answer that has begun cannot be steered through this gateway; send a new `response.create`",
}


def read_client_frame(text: str | bytes) -> ClientFrame:
    """Reads one frame of a client. Raises `FrameError` (400)."""
    lane = None
    try:
        document = JSONObject(text.encode("utf-8", "replace") if isinstance(text, str) else text)
        lane = _lane(document)
        create = read_json(_CREATE, document.text)
        if create.type != "response.create":
            known = _REFUSED.get(create.type, "the only frame that a client may send here is `response.create`")
            raise ProtocolError(known, code="unsupported_event", param="type")
        if create.stream_id is not None and lane is None:
            text = f"must be of at most {_MOST_STREAM_ID} characters"
            raise ProtocolError(text, code="invalid_stream_id", param="stream_id")
        if create.background:
            raise ProtocolError("a connection has no background", code="untranslatable", param="background")
        request = JSONObject(without(document, {"type", "stream_id", "generate"}))
        streaming = JSONObject(request.edit({"stream": b"true"}))
    except ProtocolError as error:
        raise FrameError(Problem.of(error), lane) from None
    return ClientFrame(streaming, lane, create.generate is not False)


def _lane(document: JSONObject) -> str | None:
    lane = decode_string(document.get("stream_id") or b"null")
    return lane if lane is not None and len(lane) <= _MOST_STREAM_ID else None


def encode_error_frame(
    problem: Problem, *, headers: Headers = (), stream_id: str | None = None, sequence_number: int | None = None
) -> str:
    """The frame that tells of a problem: nested, unlike the event `error` of a stream.

    `headers`: of the answer that the frame stands for. Those that say when to try again have no other place here.
    """
    if problem.retry_after_s is not None:
        headers = ((b"retry-after", b"%d" % problem.retry_after_s),)
    told = {name.decode(): value.decode() for name, value in client_response_headers(headers)}
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    error = {"type": kind, "code": problem.code, "message": problem.message, "param": problem.param}
    frame: dict[str, object] = {"type": "error", "status": problem.status, "error": error}
    if told:
        frame["headers"] = told
    if sequence_number is not None:
        frame["sequence_number"] = sequence_number
    if stream_id is not None:
        frame["stream_id"] = stream_id
    return json_bytes(frame).decode()


class FrameEncoder:
    """The bytes of one answer's event stream, as this gateway makes it, to the texts of frames. Comments are dropped.

    `max_event_bytes` bounds one event: at least what the stream's maker may make. Raises `ProtocolError` beyond it.
    """

    def __init__(self, *, stream_id: str | None = None, max_event_bytes: int = 16 * 1024 * 1024) -> None:
        self._stream_id = stream_id
        self._decoder = SSEDecoder(max_event_bytes=max_event_bytes)

    def receive_data(self, data: bytes) -> list[str]:
        """The frames that these bytes complete, in any chunking."""
        return [frame for event in self._decoder.feed(data) if (frame := self._frame(event))]

    def _frame(self, event: Event) -> str:
        data = (event.data or b"").strip()
        if not data.startswith(b"{"):
            return ""
        if b'"error"' in data:
            problem = _flat_error(data)
            if problem is not None:
                return encode_error_frame(problem[0], stream_id=self._stream_id, sequence_number=problem[1])
        return in_lane(data.decode("utf-8", "replace"), self._stream_id)


def in_lane(frame: str, stream_id: str | None) -> str:
    """The frame with its lane's name, where the lane has one. What is no JSON object stays as it is."""
    if stream_id is None:
        return frame
    with suppress(MembersError):
        frame = JSONObject(frame.encode()).edit({"stream_id": json_string(stream_id)}).decode()
    return frame


def _flat_error(data: bytes) -> tuple[Problem, int | None] | None:
    """The problem of an event `error`, and the event's number; `None` for any other event."""
    try:
        flat, _ = decode(_FLAT, data)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    if flat.type != "error":
        return None
    return problem_of(ErrorBody(flat.message, None, flat.code, flat.param)), flat.sequence_number
