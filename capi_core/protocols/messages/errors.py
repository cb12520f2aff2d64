"""Errors of Messages: in the body of an answer and in the event `error`.

Sources: Anthropic API, "Errors"; wire.md 1.3, 1.4, 1.8.
"""

from __future__ import annotations

from typing import Final

import msgspec

from capi_core.errors import Problem
from capi_core.members import decode
from capi_core.protocols.writing import json_bytes

__all__ = ["ErrorBody", "decode_error", "encode_error", "error_event", "problem_of"]

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""By HTTP status; any other below 500 is an `invalid_request_error`, and from there an `api_error`."""

_STATUS: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The status with which Anthropic sends each type, for an error that comes inside a 200."""

_MOST_MESSAGE: Final = 4096


class ErrorBody(msgspec.Struct):
    """The member `error`; all members are optional, as servers differ in what they leave out."""

    type: str | None = None
    message: str | None = None
    code: str | int | None = None
    param: str | None = None


class _Envelope(msgspec.Struct):
    """Where an error may stand: in the member `error`, or bare, as Copilot's are at times."""

    type: str | None = None
    error: ErrorBody | str | None = None
    message: str | None = None
    code: str | int | None = None


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)


def encode_error(problem: Problem, request_id: str | None = None) -> bytes:
    """A problem as Anthropic's error body, which the official SDKs map to their exception classes by status."""
    told = {"type": _type(problem), "message": problem.message}
    members: dict[str, object] = {"type": "error", "error": told}
    if request_id is not None:
        members["request_id"] = request_id
    return json_bytes(members)


def error_event(problem: Problem) -> bytes:
    """A problem as the last event of a stream, on which both official SDKs raise."""
    return b"event: error\ndata: %b\n\n" % encode_error(problem)


def decode_error(body: bytes, status: int) -> Problem | None:
    """An upstream's error; `None` when `body` tells of none. `status` counts when it is one of an error."""
    try:
        envelope, _ = decode(_ENVELOPE, body)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    error = envelope.error
    if isinstance(error, str):
        return problem_of(ErrorBody(message=error), status)
    if error is not None:
        return problem_of(error, status)
    if envelope.type == "error" or (status >= 400 and envelope.message is not None):
        return problem_of(ErrorBody(None, envelope.message, envelope.code), status)
    return None


def problem_of(error: ErrorBody, status: int = 200) -> Problem:
    """The error in no protocol's shape. A `status` below 400 says nothing: then the type decides, else it is 502."""
    code = error.type or (str(error.code) if error.code else "upstream_error")
    if status < 400:
        status = _STATUS.get(code, 502)
    message = error.message or "the upstream reported an error without a message"
    return Problem(status, code, message[:_MOST_MESSAGE], error.param)


def _type(problem: Problem) -> str:
    """The upstream's own type where that is one of Messages', else the one for the status."""
    if problem.code in _STATUS:
        return problem.code
    return _TYPES.get(problem.status) or ("api_error" if problem.status >= 500 else "invalid_request_error")
