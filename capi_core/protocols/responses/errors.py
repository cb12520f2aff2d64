"""Errors of Responses: in the body of an answer, in the event `error`, in a failed response, and nested on WebSockets.

Sources: OpenAI API reference, "Error codes" and "The response object" (`error.code`); wire.md 1.2, 1.4, 1.8.
"""

from __future__ import annotations

from typing import Final

import msgspec

from capi_core.errors import Problem
from capi_core.members import decode
from capi_core.protocols.openai import encode_error

__all__ = ["ErrorBody", "decode_error", "encode_error", "problem_of", "response_code"]

_STATUS: Final = {
    "authentication_error": 401,
    "bio_policy": 400,
    "context_length_exceeded": 400,
    "data_residency_mismatch": 400,
    "insufficient_quota": 429,
    "invalid_api_key": 401,
    "invalid_prompt": 400,
    "invalid_request_error": 400,
    "misalignment_policy_violation": 400,
    "model_not_found": 404,
    "not_found_error": 404,
    "overloaded_error": 503,
    "permission_error": 403,
    "previous_response_not_found": 400,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "server_is_overloaded": 503,
    "slow_down": 503,
}
"""By `code` or `type`: the HTTP status with which OpenAI's servers send it. What is not here is the server's fault."""

_IMAGE: Final = ("image_", "invalid_image", "invalid_base64_image", "unsupported_image", "empty_image")
_MOST_MESSAGE: Final = 4096


class ErrorBody(msgspec.Struct):
    """An error as Responses tells it anywhere; all members are optional, as servers differ in what they leave out."""

    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    param: str | None = None


class _Envelope(msgspec.Struct):
    """Every place where an error may stand: the member `error`, or flat with the type `error`."""

    error: ErrorBody | str | None = None
    type: str | None = None
    message: str | None = None
    code: str | int | None = None
    param: str | None = None


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)


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
    if envelope.type == "error" or (status >= 400 and envelope.message is not None):  # Copilot's are bare at times
        return problem_of(ErrorBody(envelope.message, None, envelope.code, envelope.param), status)
    return None


def problem_of(error: ErrorBody, status: int = 200) -> Problem:
    """The error in no protocol's shape. A `status` below 400 says nothing: then code or type decide, else it is 502."""
    code = str(error.code) if error.code else error.type or "upstream_error"
    if status < 400:
        status = _STATUS.get(code) or _STATUS.get(error.type or "") or (400 if code.startswith(_IMAGE) else 502)
    message = error.message or "the upstream reported an error without a message"
    return Problem(status, code, message[:_MOST_MESSAGE], error.param)


def response_code(problem: Problem, *, upstream: bool) -> str:
    """`response.error.code` for a problem: the upstream's own word, else the one of the API's that fits the status."""
    if upstream:
        return problem.code
    if problem.status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if problem.status < 500 else "server_error"
